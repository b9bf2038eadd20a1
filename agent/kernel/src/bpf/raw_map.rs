//! A map with typed keys and values over bare system calls: no allocation a call, `&self` everywhere.

use std::{
    io,
    marker::PhantomData,
    mem::{MaybeUninit, size_of},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::{error::BpfError, sys};

/// Plain bytes: `repr(C)`, no padding, any bit pattern valid.
///
/// # Safety
/// Implementors promise the above.
pub(super) unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($type:ty),* $(,)?) => {
        // SAFETY: integers, arrays of them, and kumiko-abi's map types, whose sizes are asserted to have no padding.
        $(unsafe impl Plain for $type {})*
    };
}

plain!(
    u8,
    u32,
    u64,
    kumiko_abi::Addr,
    kumiko_abi::AddrEntry,
    kumiko_abi::Backend,
    kumiko_abi::BackendKey,
    kumiko_abi::Command,
    kumiko_abi::Config,
    kumiko_abi::Endpoint,
    kumiko_abi::EndpointUse,
    kumiko_abi::Event,
    kumiko_abi::Flow,
    kumiko_abi::FlowKey,
    kumiko_abi::PairCount,
    kumiko_abi::PairKey,
    kumiko_abi::map::ProbePort,
    kumiko_abi::policy::Cell,
    kumiko_abi::policy::Chunk,
    kumiko_abi::policy::NetKey,
    kumiko_abi::policy::Row,
    kumiko_abi::policy::Set,
    [u32; 2],
    kumiko_abi::ServiceEntry,
    kumiko_abi::ServiceKey,
    kumiko_abi::SynRecord,
    kumiko_abi::Workload,
);

/// Reads a value from the start of `bytes`, if they are enough.
pub(super) fn read<T: Plain>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: enough bytes, any alignment, and any bytes are a `T`.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// The bytes of a value.
pub(super) fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` has no padding, so all its bytes are initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// Whether an update may find an element.
#[derive(Clone, Copy)]
pub(super) enum Put {
    Any = 0,
    New = 1,
}

pub(super) struct RawMap<K, V> {
    fd: OwnedFd,
    name: &'static str,
    _types: PhantomData<fn() -> (K, V)>,
}

impl<K: Plain, V: Plain> RawMap<K, V> {
    /// `fd` must be of a map whose key and value sizes were checked against `K` and `V` (the loader does).
    pub(super) fn new(fd: OwnedFd, name: &'static str) -> Self {
        Self { fd, name, _types: PhantomData }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn failed(&self, call: &'static str, source: io::Error) -> BpfError {
        BpfError::Map { call, map: self.name, source }
    }

    pub(super) fn get(&self, key: &K) -> Result<Option<V>, BpfError> {
        let mut value = MaybeUninit::<V>::uninit();
        // SAFETY: sizes were checked on load; the kernel fills the value when it says so.
        unsafe {
            match sys::lookup(self.fd(), key, value.as_mut_ptr()) {
                Ok(true) => Ok(Some(value.assume_init())),
                Ok(false) => Ok(None),
                Err(e) => Err(self.failed("look up in", e)),
            }
        }
    }

    pub(super) fn put(&self, key: &K, value: &V, how: Put) -> Result<(), BpfError> {
        // SAFETY: sizes were checked on load.
        unsafe { sys::update(self.fd(), key, value, how as u64) }.map_err(|e| self.failed("write to", e))
    }

    /// Writes unless an element stands there; false when one does.
    pub(super) fn put_new(&self, key: &K, value: &V) -> Result<bool, BpfError> {
        match self.put(key, value, Put::New) {
            Ok(()) => Ok(true),
            Err(BpfError::Map { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Deletes; false when there was nothing.
    pub(super) fn remove(&self, key: &K) -> Result<bool, BpfError> {
        // SAFETY: sizes were checked on load.
        unsafe { sys::delete(self.fd(), key) }.map_err(|e| self.failed("delete from", e))
    }

    /// Every key, as a snapshot: elements that come or go meanwhile may be in it or not.
    pub(super) fn keys(&self) -> Result<Vec<K>, BpfError> {
        let mut keys = Vec::new();
        let mut next = MaybeUninit::<K>::uninit();
        let mut at: *const K = std::ptr::null();
        let mut last: K;
        // SAFETY: sizes were checked on load; `next` is filled when the kernel says so, `at` is null or `last`.
        unsafe {
            while sys::next_key(self.fd(), at, next.as_mut_ptr()).map_err(|e| self.failed("walk", e))? {
                last = next.assume_init();
                keys.push(last);
                at = &raw const last;
                if keys.len() > MOST_KEYS {
                    // A deleted key sends the walk back to the start; concurrent churn must not keep it going.
                    break;
                }
            }
        }
        Ok(keys)
    }

    /// Every element, as a snapshot.
    pub(super) fn list(&self) -> Result<Vec<(K, V)>, BpfError> {
        let mut all = Vec::new();
        for key in self.keys()? {
            if let Some(value) = self.get(&key)? {
                all.push((key, value));
            }
        }
        Ok(all)
    }

    /// Every CPU's value of `key`.
    pub(super) fn get_per_cpu(&self, key: &K, cpus: usize) -> Result<Vec<V>, BpfError> {
        let slot = size_of::<V>().div_ceil(8) * 8;
        let mut buffer = vec![0u64; slot / 8 * cpus];
        // SAFETY: the buffer holds one slot, rounded up to 8, for every possible CPU.
        let found = unsafe { sys::lookup(self.fd(), key, buffer.as_mut_ptr()) };
        if !found.map_err(|e| self.failed("look up in", e))? {
            return Ok(Vec::new());
        }
        // SAFETY: u64s as bytes.
        let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), buffer.len() * 8) };
        Ok(bytes.chunks_exact(slot).filter_map(read).collect())
    }

    /// Writes one value to every CPU's slot, unless an element stands there.
    pub(super) fn put_per_cpu_new(&self, key: &K, value: &V, cpus: usize) -> Result<(), BpfError> {
        let slot = size_of::<V>().div_ceil(8) * 8;
        let mut buffer = Vec::with_capacity(slot * cpus);
        for _ in 0..cpus {
            buffer.extend_from_slice(bytes_of(value));
            buffer.resize(buffer.len().div_ceil(8) * 8, 0);
        }
        // SAFETY: as for reading.
        match unsafe { sys::update(self.fd(), key, buffer.as_ptr(), Put::New as u64) } {
            Err(e) if e.raw_os_error() != Some(libc::EEXIST) => Err(self.failed("write to", e)),
            _ => Ok(()),
        }
    }
}

impl<V: Plain> RawMap<u32, V> {
    /// Writes a run of an array's elements.
    pub(super) fn put_run(&self, first: u32, values: &[V]) -> Result<(), BpfError> {
        let mut at = first;
        for part in values.chunks(BATCH) {
            let keys: Vec<u32> = (at..).take(part.len()).collect();
            let count = u32::try_from(part.len()).unwrap_or(u32::MAX);
            // SAFETY: sizes were checked on load; as many keys and values as are said.
            unsafe { sys::update_batch(self.fd(), (keys.as_ptr(), part.as_ptr(), count)) }
                .map_err(|e| self.failed("write to", e))?;
            at = at.saturating_add(count);
        }
        Ok(())
    }
}

/// Elements written by one call.
const BATCH: usize = 4_096;
/// Longest walk.
const MOST_KEYS: usize = 1 << 20;
