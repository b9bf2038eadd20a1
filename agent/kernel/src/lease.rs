//! Reading a file while nobody can write to it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// asm-generic/fcntl.h: which signal tells of the file, instead of SIGIO. `libc` has no name for it.
const F_SETSIG: libc::c_int = 10;

/// File systems of which this kernel knows all writers, by linux/magic.h. A network's give leases too, or say that somebody
/// writes, and mean their server's word: FUSE, NFS, CIFS.
const LOCAL: [u64; 7] = [
    0xEF53,      // ext2 to ext4
    0x5846_5342, // XFS
    0x9123_683E, // btrfs
    0xF2F5_2010, // F2FS
    0x0102_1994, // tmpfs
    0x8584_58F6, // ramfs
    0x794C_7630, // overlayfs
];

/// Keeps writers out of a file, which is open for reading only, until it is closed: whoever opens it for writing in the
/// meantime, or truncates it, waits, for `fs.lease-break-time` at most; with `O_NONBLOCK` it is told `EWOULDBLOCK`. So hold
/// it for no longer than one reading takes. `false`: somebody has it open for writing now, by whatever name, or mapped so.
///
/// # Errors
/// Nothing is known of writers: the file is somebody else's and the process has no `CAP_LEASE`, its file system is none
/// of which the kernel knows all writers, or `fs.leases-enable` is 0.
pub fn keep_writers_out(file: &File) -> io::Result<bool> {
    if !u64::try_from(rustix::fs::fstatfs(file)?.f_type).is_ok_and(|magic| LOCAL.contains(&magic)) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // Who waits for us is told by a signal; the usual one, SIGIO, would end the process. This one is ignored by default.
    fcntl(file, F_SETSIG, libc::SIGURG)?;
    match fcntl(file, libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
        Err(error) => Err(error),
    }
}

fn fcntl(file: &File, command: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `file` is borrowed; both commands take a number and touch no memory.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, value) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    use super::*;

    #[test]
    fn writers_wait_until_it_is_read_and_are_known_by_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&path, "whole").unwrap();
        fs::hard_link(&path, &other).unwrap();
        let file = File::open(&path).unwrap();
        assert!(keep_writers_out(&file).unwrap());
        // Two agents may read one file.
        let second = File::open(&other).unwrap();
        assert!(keep_writers_out(&second).unwrap());
        let impatient = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&other);
        assert_eq!(impatient.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let waits = std::thread::spawn({
            let other = other.clone();
            move || File::create(other).unwrap()
        });
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
        drop((file, second));
        let mut writer = waits.join().unwrap();
        writer.write_all(b"half").unwrap();
        assert!(!keep_writers_out(&File::open(&path).unwrap()).unwrap());
        drop(writer);
        assert!(keep_writers_out(&File::open(&path).unwrap()).unwrap());
    }

    #[test]
    fn of_other_file_systems_nothing_is_known() {
        let told = keep_writers_out(&File::open("/proc/version").unwrap());
        assert_eq!(told.unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
