//! Points that can be armed, and the socket by which a test arms them.
//!
//! One line asks, one line answers:
//!
//! - `arm POINT ACTION SKIP TIMES`: after `SKIP` hits do it `TIMES` times. Actions: `kill`, `stop`, `panic`, `fail`,
//!   `delay:MILLISECONDS` (of the whole thread);
//! - `disarm`: all of them;
//! - `records-per-key N`: of tunnels that are made from now on; 0 is the ordinary limit;
//! - `model-within MILLISECONDS`: for which an acceptor waits for its model from now on; 0 is the ordinary time;
//! - `hits`: how often each point was passed and how often it acted, as `NAME PASSED ACTED` separated by `;`.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;

use crate::{Injected, Point};

/// Name of the socket in the run directory.
pub const SOCKET: &str = "faults.sock";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Kill,
    Stop,
    Panic,
    Fail,
    Delay(Duration),
}

#[derive(Debug)]
struct Arm {
    action: Action,
    skip: u64,
    times: u64,
}

#[derive(Debug)]
struct Slot {
    /// Spares the lock where nothing is armed.
    armed: AtomicBool,
    arm: Mutex<Option<Arm>>,
    passed: AtomicU64,
    acted: AtomicU64,
}

static SLOTS: [Slot; Point::ALL.len()] = [const {
    Slot { armed: AtomicBool::new(false), arm: Mutex::new(None), passed: AtomicU64::new(0), acted: AtomicU64::new(0) }
}; Point::ALL.len()];

static RECORDS_PER_KEY: AtomicU64 = AtomicU64::new(0);
static MODEL_WITHIN: AtomicU64 = AtomicU64::new(0);

fn slot(point: Point) -> Option<&'static Slot> {
    SLOTS.get(point as usize)
}

impl Slot {
    /// What is to be done at this hit.
    fn next(&self) -> Option<Action> {
        self.passed.fetch_add(1, Ordering::Relaxed);
        if !self.armed.load(Ordering::Acquire) {
            return None;
        }
        let mut guard = self.arm.lock().unwrap_or_else(PoisonError::into_inner);
        let arm = guard.as_mut()?;
        if arm.skip > 0 {
            arm.skip -= 1;
            return None;
        }
        let action = arm.action;
        arm.times = arm.times.saturating_sub(1);
        if arm.times == 0 {
            *guard = None;
            self.armed.store(false, Ordering::Release);
        }
        self.acted.fetch_add(1, Ordering::Relaxed);
        Some(action)
    }

    fn set(&self, arm: Option<Arm>) {
        let mut guard = self.arm.lock().unwrap_or_else(PoisonError::into_inner);
        self.armed.store(arm.is_some(), Ordering::Release);
        *guard = arm;
    }
}

/// What the agent does here in a test that has armed the point; otherwise nothing.
///
/// # Errors
/// [`Injected`] when the operation is to fail; the caller does what it does when the kernel or the peer fails it.
///
/// # Panics
/// On a test's demand.
#[allow(clippy::panic, reason = "a test asked for it")]
pub fn hit(point: Point) -> Result<(), Injected> {
    let Some(action) = slot(point).and_then(Slot::next) else { return Ok(()) };
    eprintln!("fault point {}: {action:?}", point.name());
    match action {
        Action::Kill => signal(Signal::SIGKILL),
        Action::Stop => signal(Signal::SIGSTOP),
        Action::Panic => panic!("on a test's demand at {}", point.name()),
        Action::Fail => return Err(Injected),
        Action::Delay(time) => std::thread::sleep(time),
    }
    Ok(())
}

fn signal(signal: Signal) {
    let _ = kill(getpid(), signal);
}

/// Records sealed with one key: `default`, or what a test has set.
pub fn records_per_key(default: u64) -> u64 {
    match RECORDS_PER_KEY.load(Ordering::Relaxed) {
        0 => default,
        set => set,
    }
}

/// How long an acceptor waits for its model: `default`, or what a test has set.
pub fn model_within(default: Duration) -> Duration {
    match MODEL_WITHIN.load(Ordering::Relaxed) {
        0 => default,
        set => Duration::from_millis(set),
    }
}

/// Takes a test's demands at `run_dir`, on a thread of its own.
///
/// # Errors
/// The socket cannot be made.
pub fn serve(run_dir: &Path) -> io::Result<()> {
    let path = run_dir.join(SOCKET);
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    eprintln!("this agent has fault points, armed at {}: it is for tests only", path.display());
    std::thread::Builder::new().name("faults".to_owned()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer(&stream);
        }
    })?;
    Ok(())
}

fn answer(stream: &UnixStream) -> io::Result<()> {
    for line in BufReader::new(stream).lines() {
        let answer = obey(&line?).unwrap_or_else(|error| format!("error: {error}"));
        writeln!(&*stream, "{answer}")?;
    }
    Ok(())
}

fn obey(line: &str) -> Result<String, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match *words.as_slice() {
        ["arm", point, action, skip, times] => {
            let point = Point::named(point).and_then(slot).ok_or(format!("no point {point}"))?;
            let arm = Arm { action: parse(action)?, skip: number(skip)?, times: number(times)? };
            point.set(Some(arm));
        }
        ["disarm"] => SLOTS.iter().for_each(|slot| slot.set(None)),
        ["records-per-key", records] => RECORDS_PER_KEY.store(number(records)?, Ordering::Relaxed),
        ["model-within", time] => MODEL_WITHIN.store(number(time)?, Ordering::Relaxed),
        ["hits"] => {
            let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
            let line = |(point, slot): (&Point, &Slot)| {
                format!("{} {} {}", point.name(), count(&slot.passed), count(&slot.acted))
            };
            return Ok(Point::ALL.iter().zip(&SLOTS).map(line).collect::<Vec<_>>().join(";"));
        }
        _ => return Err(format!("not understood: {line}")),
    }
    Ok("ok".to_owned())
}

fn parse(text: &str) -> Result<Action, String> {
    match text.split_once(':') {
        None => match text {
            "kill" => Ok(Action::Kill),
            "stop" => Ok(Action::Stop),
            "panic" => Ok(Action::Panic),
            "fail" => Ok(Action::Fail),
            _ => Err(format!("no action {text}")),
        },
        Some(("delay", time)) => Ok(Action::Delay(Duration::from_millis(number(time)?))),
        Some(_) => Err(format!("no action {text}")),
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("not a number: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_armed_point_skips_acts_and_is_spent() {
        let slot = slot(Point::Handshake).unwrap();
        assert_eq!(hit(Point::Handshake), Ok(()));
        assert_eq!(obey("arm handshake fail 1 2").as_deref(), Ok("ok"));
        let got: Vec<_> = (0..5).map(|_| hit(Point::Handshake)).collect();
        assert_eq!(got, [Ok(()), Err(Injected), Err(Injected), Ok(()), Ok(())]);
        assert!(slot.arm.lock().unwrap().is_none());
        assert!(obey("hits").unwrap().contains("handshake 6 2"));
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for line in ["arm nowhere kill 0 1", "arm handshake hop 0 1", "arm handshake kill x 1", "dance", ""] {
            assert!(obey(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_name_is_its_points() {
        for point in Point::ALL {
            assert_eq!(Point::named(point.name()), Some(*point));
        }
    }
}
