//! Files that are being written, links, and what is no file: when they are read, and when the last good version stands.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::*;
use super::{WITHIN, put, source, wait_names, wait_status, workload};

/// Writers can be kept out, or nothing is known of them: another's files, and no `CAP_LEASE`.
const WAYS: [KeepOut; 2] = [keep_writers_out, |_| Err(std::io::ErrorKind::PermissionDenied.into())];

fn source_by(way: KeepOut, dir: &Path) -> Source {
    start_reading(&SourceUrl::Dir(dir.to_owned()), "td", Taking::default(), way).unwrap()
}

#[tokio::test]
async fn a_file_behind_a_link_is_followed() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    put(elsewhere.path(), "a.yaml", &workload("a", "10.0.0.1"));
    symlink(elsewhere.path().join("a.yaml"), dir.path().join("a.yaml")).unwrap();
    let mut source = source(dir.path());
    wait_names(&mut source, &["a"]).await;
    put(elsewhere.path(), "a.yaml", &workload("b", "10.0.0.1"));
    wait_names(&mut source, &["b"]).await;
}

#[tokio::test]
async fn a_writer_that_has_not_closed_its_file_is_waited_for() {
    use std::io::Write as _;
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "a.yaml", &(workload("a", "10.0.0.1") + &workload("b", "10.0.0.2")));
    let mut source = source(dir.path());
    wait_names(&mut source, &["a", "b"]).await;
    let mut worlds = source.world.clone();
    worlds.mark_unchanged();
    // Truncated, then written in two pieces with time between them to read half of it.
    let mut file = fs::File::create(dir.path().join("a.yaml")).unwrap();
    file.write_all(workload("a", "10.0.0.1").as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    file.write_all((workload("b", "10.0.0.2") + &workload("c", "10.0.0.3")).as_bytes()).unwrap();
    drop(file);
    tokio::time::timeout(WITHIN, worlds.changed()).await.unwrap().unwrap();
    assert_eq!(worlds.borrow().workloads().count(), 3, "half of a file came into force");
}

#[tokio::test]
async fn writers_are_known_in_a_folder_that_was_replaced_and_by_whatever_name_it_has() {
    use std::io::Write as _;
    let parent = tempfile::tempdir().unwrap();
    let (dir, next) = (parent.path().join("manifests"), parent.path().join("next"));
    let up: PathBuf = std::env::current_dir().unwrap().components().skip(1).map(|_| "..").collect();
    let both = workload("a", "10.0.0.1") + &workload("b", "10.0.0.2");
    for folder in [&dir, &next] {
        fs::create_dir(folder).unwrap();
        put(folder, "a.yaml", &both);
    }
    put(&next, "c.yaml", &workload("c", "10.0.0.3"));
    let mut source = source(&up.join(dir.strip_prefix("/").unwrap()));
    wait_names(&mut source, &["a", "b"]).await;
    fs::rename(&dir, parent.path().join("old")).unwrap();
    fs::rename(&next, &dir).unwrap();
    wait_names(&mut source, &["a", "b", "c"]).await;
    // Half of it, for longer than a folder may take to come to rest.
    let mut file = fs::File::create(dir.join("a.yaml")).unwrap();
    file.write_all(workload("a", "10.0.0.1").as_bytes()).unwrap();
    wait_status(&mut source, |status| status.diagnostics.iter().any(|told| told.file == "a.yaml")).await;
    wait_names(&mut source, &["a", "b", "c"]).await;
    file.write_all((workload("b", "10.0.0.2") + &workload("d", "10.0.0.4")).as_bytes()).unwrap();
    drop(file);
    wait_names(&mut source, &["a", "b", "c", "d"]).await;
}

#[tokio::test]
async fn a_file_that_was_truncated_before_the_start_does_not_say_nothing() {
    let (dir, kept, elsewhere) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let taking = Taking { last_good: Some(kept.path().to_owned()), ..Taking::default() };
    let begin = || start(&SourceUrl::Dir(dir.path().to_owned()), "td", taking.clone()).unwrap();
    put(dir.path(), "a.yaml", &workload("a", "10.0.0.1"));
    put(elsewhere.path(), "b.yaml", &workload("b", "10.0.0.2"));
    symlink(elsewhere.path().join("b.yaml"), dir.path().join("b.yaml")).unwrap();
    let mut first = begin();
    wait_names(&mut first, &["a", "b"]).await;
    // Behind a link nothing tells of writers.
    let linked = fs::File::create(elsewhere.path().join("b.yaml")).unwrap();
    let unfinished =
        |source: &Source, file: &str| source.status.borrow().diagnostics.iter().any(|told| told.file == file);
    let now = std::time::SystemTime::now;
    while !unfinished(&first, "b.yaml") {
        linked.set_modified(now()).unwrap();
        let _ = tokio::time::timeout(Duration::from_secs(1), first.status.changed()).await;
    }
    wait_names(&mut first, &["a", "b"]).await;
    drop(first);
    let truncated = fs::File::create(dir.path().join("a.yaml")).unwrap();
    linked.set_modified(now()).unwrap();
    let mut second = begin();
    second.synced().await.unwrap();
    assert!(unfinished(&second, "a.yaml") && unfinished(&second, "b.yaml"), "{:?}", second.status.borrow());
    wait_names(&mut second, &["a", "b"]).await;
    // Nobody waits for ever: they were emptied long ago.
    let long_ago = now() - Duration::from_secs(3_600);
    truncated.set_modified(long_ago).unwrap();
    linked.set_modified(long_ago).unwrap();
    wait_names(&mut second, &[]).await;
    wait_status(&mut second, |status| status.diagnostics.is_empty()).await;
}

#[tokio::test]
async fn half_of_a_file_never_comes_into_force_however_slow_its_writer() {
    for way in WAYS {
        half_of_a_file_never_comes_into_force(way).await;
    }
}

async fn half_of_a_file_never_comes_into_force(way: KeepOut) {
    use std::io::Write as _;
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "a.yaml", &(workload("a", "10.0.0.1") + &workload("b", "10.0.0.2")));
    let mut source = source_by(way, dir.path());
    let mut file = fs::File::create(dir.path().join("a.yaml")).unwrap();
    file.write_all(workload("a", "10.0.0.1").as_bytes()).unwrap();
    let status = wait_status(&mut source, |status| !status.diagnostics.is_empty()).await;
    assert_eq!(status.diagnostics[0].message, "is still being written: it is read when its writer closes it");
    // Others are not kept waiting.
    put(dir.path(), "c.yaml", &workload("c", "10.0.0.3"));
    wait_names(&mut source, &["a", "b", "c"]).await;
    file.write_all(workload("d", "10.0.0.4").as_bytes()).unwrap();
    drop(file);
    wait_names(&mut source, &["a", "c", "d"]).await;
    wait_status(&mut source, |status| status.diagnostics.is_empty()).await;
}

#[tokio::test]
async fn a_file_that_is_written_anew_all_the_time_never_says_nothing() {
    for way in WAYS {
        a_file_that_is_written_anew_never_says_nothing(way).await;
    }
}

async fn a_file_that_is_written_anew_never_says_nothing(way: KeepOut) {
    use std::io::Write as _;
    let dir = tempfile::tempdir().unwrap();
    let text = workload("a", "10.0.0.1");
    put(dir.path(), "a.yaml", &text);
    let mut source = source_by(way, dir.path());
    wait_names(&mut source, &["a"]).await;
    let path = dir.path().to_owned();
    let counters = source.counters.clone();
    let writer = std::thread::spawn(move || {
        // Until it was read often enough: how often a folder is that changes all the time depends on both sides' pace.
        for round in 0.. {
            if counters.readings() > 6 {
                return;
            }
            let mut file = fs::File::create(path.join("a.yaml")).unwrap();
            // Empty for as long as a reading of the folder takes.
            std::thread::sleep(Duration::from_millis(5));
            file.write_all(text.as_bytes()).unwrap();
            drop(file);
            put(&path, "b.yaml", &workload("b", &format!("10.0.1.{}", round % 250)));
            // Now and then quiet enough to be read.
            std::thread::sleep(Duration::from_millis(round * 7 % 60));
        }
    });
    let mut worlds = source.world.clone();
    let mut names = BTreeSet::new();
    while !writer.is_finished() {
        let _ = tokio::time::timeout(Duration::from_millis(50), worlds.changed()).await;
        names.insert(worlds.borrow_and_update().workloads().any(|workload| workload.name == "a"));
    }
    writer.join().unwrap();
    assert_eq!(names, BTreeSet::from([true]), "half of a file came into force");
}

#[tokio::test]
async fn a_writer_that_nothing_tells_of_is_waited_for() {
    use std::io::Write as _;
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    put(dir.path(), "a.yaml", &(workload("a", "10.0.0.1") + &workload("b", "10.0.0.2")));
    // By another name, outside the folder.
    fs::hard_link(dir.path().join("a.yaml"), elsewhere.path().join("a")).unwrap();
    let mut source = source(dir.path());
    wait_names(&mut source, &["a", "b"]).await;
    let mut worlds = source.world.clone();
    worlds.mark_unchanged();
    let mut file = fs::File::create(elsewhere.path().join("a")).unwrap();
    file.write_all(workload("a", "10.0.0.1").as_bytes()).unwrap();
    wait_status(&mut source, |status| !status.diagnostics.is_empty()).await;
    file.write_all((workload("b", "10.0.0.2") + &workload("c", "10.0.0.3")).as_bytes()).unwrap();
    drop(file);
    wait_status(&mut source, |status| status.diagnostics.is_empty()).await;
    assert!(worlds.has_changed().unwrap());
    assert_eq!(worlds.borrow_and_update().workloads().count(), 3);
    // It has come into force as a whole: nothing in between.
    assert_eq!(source.status.borrow().epoch, 2);
    // A time that is set anew makes no writer.
    let linked = fs::File::open(elsewhere.path().join("a")).unwrap();
    linked.set_modified(std::time::SystemTime::now()).unwrap();
    put(dir.path(), "d.yaml", &workload("d", "10.0.0.4"));
    wait_names(&mut source, &["a", "b", "c", "d"]).await;
    assert_eq!(source.status.borrow().diagnostics, []);
}

#[test]
fn who_truncates_is_told_of_by_the_time_his_file_was_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    let mut notified = notified::Notified::of(dir.path()).unwrap();
    for _ in 0..8 {
        // The more there is to free, the longer it is empty already and nothing has been told.
        fs::write(&path, vec![b'#'; 64 << 20]).unwrap();
        notified.take();
        let truncated = path.clone();
        let writer = std::thread::spawn(move || fs::File::create(truncated).unwrap());
        while fs::metadata(&path).unwrap().len() > 0 && !writer.is_finished() {}
        let files = read(dir.path()).unwrap().files;
        let told: Vec<_> = notified.take().into_iter().map(|told| told.what).collect();
        assert_eq!(told, [notified::What::Written], "{files:?}");
        drop(writer.join().unwrap());
    }
}

#[tokio::test]
async fn a_writer_that_never_closes_is_given_up() {
    use std::io::Write as _;
    let dir = tempfile::tempdir().unwrap();
    let mut source = source(dir.path());
    let mut file = fs::File::create(dir.path().join("a.yaml")).unwrap();
    file.write_all(workload("a", "10.0.0.1").as_bytes()).unwrap();
    wait_status(&mut source, |status| !status.diagnostics.is_empty()).await;
    wait_names(&mut source, &["a"]).await;
    wait_status(&mut source, |status| status.diagnostics.is_empty()).await;
}

#[tokio::test]
async fn a_link_to_nothing_is_told_and_text_that_is_none_has_its_place() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "a.yaml", &workload("a", "10.0.0.1"));
    let mut source = source(dir.path());
    symlink("nowhere", dir.path().join(".a")).unwrap();
    fs::rename(dir.path().join(".a"), dir.path().join("a.yaml")).unwrap();
    fs::write(dir.path().join("b.yaml"), b"a: 1\n# caf\xe9\n").unwrap();
    let status = wait_status(&mut source, |status| status.diagnostics.len() == 2).await;
    assert!(status.diagnostics[0].message.starts_with("cannot be read: "), "{status:?}");
    assert_eq!((status.diagnostics[1].line, status.diagnostics[1].column), (2, 6));
    // Only a file that is gone takes its objects along.
    wait_names(&mut source, &["a"]).await;
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    wait_names(&mut source, &[]).await;
}

#[test]
fn pipes_and_too_many_files() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("pipe.yaml");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert!(read(dir.path()).unwrap().files.is_empty());
    // Whichever were left out would count as removed.
    let most = 2 * MAX_FILES;
    for number in 0..most {
        fs::hard_link(&fifo, dir.path().join(format!("{number}.yaml"))).unwrap();
    }
    assert!(read(dir.path()).unwrap_err().to_string().contains("more than 20000 manifests"));
}
