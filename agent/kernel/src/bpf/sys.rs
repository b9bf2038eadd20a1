//! `bpf(2)`: the commands that aya does not offer, or only with an allocation a call.
//!
//! One `repr(C)` struct a command, laid out like the arm of `union bpf_attr` in linux/bpf.h that it stands for. The
//! kernel takes a shorter attribute than its own and treats the rest as zeros.

use std::{
    ffi::CString,
    io,
    mem::size_of,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Commands of `bpf(2)`.
#[repr(i32)]
#[derive(Clone, Copy)]
enum Cmd {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ObjPin = 6,
    ObjGet = 7,
    TestRun = 10,
    MapFdById = 14,
    ObjInfo = 15,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

fn bpf<T>(cmd: Cmd, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a live value of the given size; each caller keeps alive what it points to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, cmd as libc::c_int, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(i32::MAX)) }
}

/// Waits until each program has ended that was running when this began: an RCU grace period, some 10 ms.
/// `MEMBARRIER_CMD_GLOBAL` is one (kernel/sched/membarrier.c, Linux 4.3); where CPUs run without ticks it is refused, and closing
/// a packet socket is one as well (`packet_release`, net/packet/af_packet.c). With one CPU on line there
/// is nothing to wait for: where this runs, no program does.
pub(super) fn wait_for_programs() -> io::Result<()> {
    // SAFETY: no memory is passed.
    if unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) } == 0 {
        return Ok(());
    }
    drop(socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?);
    Ok(())
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel just made this descriptor for us (close-on-exec, as all of bpf(2)'s are).
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T>(of: *const T) -> u64 {
    of as usize as u64
}

#[repr(C)]
#[derive(Default)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// Makes a ring buffer of `bytes` (a power of two, at least a page).
pub(super) fn create_ring(bytes: u32) -> io::Result<OwnedFd> {
    const RINGBUF: u32 = 27;
    let mut attr = Create { map_type: RINGBUF, max_entries: bytes, ..Create::default() };
    bpf(Cmd::MapCreate, &mut attr).map(owned)
}

#[repr(C)]
struct Element {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Copies the value of `key` to `value`; false when there is none.
///
/// # Safety
/// Both pointers must be valid for the map's key and value size (per-CPU maps: all CPUs' values, each rounded up to 8).
pub(super) unsafe fn lookup<K, V>(map: BorrowedFd<'_>, key: *const K, value: *mut V) -> io::Result<bool> {
    let mut attr = Element { map_fd: raw(map), _pad: 0, key: address(key), value: address(value), flags: 0 };
    match bpf(Cmd::MapLookup, &mut attr) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Writes an element. `flags`: 0 any, 1 only new, 2 only existing.
///
/// # Safety
/// As for [`lookup`].
pub(super) unsafe fn update<K, V>(map: BorrowedFd<'_>, key: *const K, value: *const V, flags: u64) -> io::Result<()> {
    let mut attr = Element { map_fd: raw(map), _pad: 0, key: address(key), value: address(value), flags };
    bpf(Cmd::MapUpdate, &mut attr).map(drop)
}

/// Deletes an element; false when there was none.
///
/// # Safety
/// `key` must be valid for the map's key size.
pub(super) unsafe fn delete<K>(map: BorrowedFd<'_>, key: *const K) -> io::Result<bool> {
    let mut attr = Element { map_fd: raw(map), _pad: 0, key: address(key), value: 0, flags: 0 };
    match bpf(Cmd::MapDelete, &mut attr) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The key after `key` (null: the first); false at the end.
///
/// # Safety
/// As for [`lookup`], `next` standing for the value.
pub(super) unsafe fn next_key<K>(map: BorrowedFd<'_>, key: *const K, next: *mut K) -> io::Result<bool> {
    let mut attr = Element { map_fd: raw(map), _pad: 0, key: address(key), value: address(next), flags: 0 };
    match bpf(Cmd::MapNextKey, &mut attr) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// What one batch brought.
pub(super) struct BatchRead {
    /// Elements copied.
    pub(super) count: u32,
    /// Nothing comes after them.
    pub(super) last: bool,
}

/// Copies up to `count` elements from `position` on (`None`: the start) and moves it. `ENOSPC`: one bucket holds more
/// than `count`.
///
/// # Safety
/// `keys` and `values` must be valid for `count` keys and values.
pub(super) unsafe fn lookup_batch<K, V>(
    map: BorrowedFd<'_>,
    position: &mut Option<u32>,
    (keys, values, count): (*mut K, *mut V, u32),
) -> io::Result<BatchRead> {
    let start = position.unwrap_or(0);
    let mut next = 0u32;
    let mut attr = Batch {
        in_batch: if position.is_some() { address(&raw const start) } else { 0 },
        out_batch: address(&raw mut next),
        keys: address(keys),
        values: address(values),
        count,
        map_fd: raw(map),
        ..Batch::default()
    };
    let last = match bpf(Cmd::MapLookupBatch, &mut attr) {
        Ok(_) => false,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
        Err(e) => return Err(e),
    };
    *position = Some(next);
    Ok(BatchRead { count: attr.count, last })
}

/// Writes elements of an array (Linux 5.6).
///
/// # Safety
/// `keys` and `values` must be valid for `count` keys and values.
pub(super) unsafe fn update_batch<K, V>(
    map: BorrowedFd<'_>,
    (keys, values, count): (*const K, *const V, u32),
) -> io::Result<()> {
    let mut attr = Batch { keys: address(keys), values: address(values), count, map_fd: raw(map), ..Batch::default() };
    bpf(Cmd::MapUpdateBatch, &mut attr).map(drop)
}

#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Pins a map, program or link.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = Object { pathname: address(path.as_ptr()), bpf_fd: raw(fd), file_flags: 0 };
    bpf(Cmd::ObjPin, &mut attr).map(drop)
}

/// Opens what is pinned.
pub(super) fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = Object { pathname: address(path.as_ptr()), bpf_fd: 0, file_flags: 0 };
    bpf(Cmd::ObjGet, &mut attr).map(owned)
}

#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Opens a map by its kernel id (what a lookup in a map of maps returns).
pub(super) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = ById { id, next_id: 0, open_flags: 0 };
    bpf(Cmd::MapFdById, &mut attr).map(owned)
}

#[repr(C)]
struct Info {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

fn info<T: Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut value = T::default();
    let len = u32::try_from(size_of::<T>()).unwrap_or(0);
    let mut attr = Info { bpf_fd: raw(fd), info_len: len, info: address(&raw mut value) };
    bpf(Cmd::ObjInfo, &mut attr)?;
    Ok(value)
}

/// The head of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct MapInfo {
    pub(super) map_type: u32,
    pub(super) id: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    pub(super) map_flags: u32,
}

pub(super) fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(fd)
}

/// The head of `struct bpf_link_info`; the union's first words are ifindex and attach type for tcx, inode and attach
/// type for a network namespace.
#[repr(C)]
#[derive(Default, Clone, Copy, Debug)]
pub(super) struct LinkInfo {
    pub(super) link_type: u32,
    pub(super) id: u32,
    pub(super) prog_id: u32,
    _pad: u32,
    pub(super) target: u32,
    pub(super) attach_type: u32,
    _rest: [u32; 4],
}

pub(super) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(fd)
}

/// Where a link goes.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttachType {
    SkLookup = 36,
    TcxIngress = 46,
    TcxEgress = 47,
}

#[repr(C)]
struct Link {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    _pad: u32,
    expected_revision: u64,
}

/// `BPF_F_BEFORE` without a relative: first of its hook.
const FIRST: u32 = 1 << 3;

/// Attaches by link. `target`: an interface's index in the calling thread's namespace, or a namespace's descriptor.
pub(super) fn link(prog: BorrowedFd<'_>, target: u32, attach_type: AttachType) -> io::Result<OwnedFd> {
    let flags = if attach_type == AttachType::SkLookup { 0 } else { FIRST };
    let mut attr = Link {
        prog_fd: raw(prog),
        target,
        attach_type: attach_type as u32,
        flags,
        relative: 0,
        _pad: 0,
        expected_revision: 0,
    };
    bpf(Cmd::LinkCreate, &mut attr).map(owned)
}

/// The raw number of a namespace's descriptor, as [`link`] wants it.
pub(super) fn netns_target(fd: BorrowedFd<'_>) -> u32 {
    let fd: RawFd = fd.as_raw_fd();
    fd.cast_unsigned()
}

#[repr(C)]
struct Update {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Puts another program in a link's place: every packet meets the old one or the new one.
pub(super) fn update_link(link: BorrowedFd<'_>, prog: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Update { link_fd: raw(link), new_prog_fd: raw(prog), flags: 0, old_prog_fd: 0 };
    bpf(Cmd::LinkUpdate, &mut attr).map(drop)
}

#[repr(C)]
struct Detach {
    link_fd: u32,
}

/// Takes a link's program off its hook before the call ends; closing or unpinning it alone does so some time later.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(Cmd::LinkDetach, &mut Detach { link_fd: raw(link) }).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    _pad: u32,
}

/// Runs a program once with `data` as the packet and tells what it returned.
pub(super) fn test_run(prog: BorrowedFd<'_>, data: &[u8]) -> io::Result<u32> {
    test_run_with(prog, data, None, &mut []).map(|(value, _)| value)
}

/// The same with a context (`struct __sk_buff`'s bytes), and with room for the packet as the program leaves it: empty, or as
/// large as that. With the nanoseconds that it took.
pub(super) fn test_run_with(
    prog: BorrowedFd<'_>,
    data: &[u8],
    context: Option<&[u8]>,
    out: &mut [u8],
) -> io::Result<(u32, u32)> {
    let size = |of: &[u8]| u32::try_from(of.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG));
    let mut attr = TestRun {
        prog_fd: raw(prog),
        data_size_in: size(data)?,
        data_in: address(data.as_ptr()),
        ..TestRun::default()
    };
    if !out.is_empty() {
        attr.data_size_out = size(out)?;
        attr.data_out = address(out.as_mut_ptr());
    }
    if let Some(context) = context {
        attr.ctx_size_in = size(context)?;
        attr.ctx_in = address(context.as_ptr());
    }
    bpf(Cmd::TestRun, &mut attr)?;
    Ok((attr.retval, attr.duration))
}
