//! Atomic operations on map values. The BPF target has them (instruction set v3, kernel 5.12), Rust's `core` does not
//! offer them for it yet. Elsewhere, where the programs are only type-checked, `core`'s own stand in.

#[cfg(not(target_arch = "bpf"))]
pub(crate) use elsewhere::{fetch_add, fetch_and, fetch_or, replace_zero};
#[cfg(target_arch = "bpf")]
pub(crate) use here::{fetch_add, fetch_and, fetch_or, replace_zero};

#[cfg(target_arch = "bpf")]
mod here {
    use core::arch::asm;

    /// Adds to a counter and tells what stood there.
    ///
    /// # Safety
    /// `at` must point to an aligned field of a map value.
    #[inline(always)]
    pub(crate) unsafe fn fetch_add(at: *mut u64, n: u64) -> u64 {
        let mut value = n;
        // SAFETY: one instruction that touches `*at` only.
        unsafe {
            asm!("{v} = atomic_fetch_add((u64 *)({p} + 0), {v})", p = in(reg) at, v = inout(reg) value, options(nostack));
        }
        value
    }

    /// Sets bits and tells what stood there.
    ///
    /// # Safety
    /// As for [`fetch_add`].
    #[inline(always)]
    pub(crate) unsafe fn fetch_or(at: *mut u32, bits: u32) -> u32 {
        let mut value = bits;
        // SAFETY: as above.
        unsafe {
            asm!("{v} = atomic_fetch_or((u32 *)({p} + 0), {v})", p = in(reg) at, v = inout(wreg) value, options(nostack));
        }
        value
    }

    /// Keeps only `bits` and tells what stood there.
    ///
    /// # Safety
    /// As for [`fetch_add`].
    #[inline(always)]
    pub(crate) unsafe fn fetch_and(at: *mut u32, bits: u32) -> u32 {
        let mut value = bits;
        // SAFETY: as above.
        unsafe {
            asm!("{v} = atomic_fetch_and((u32 *)({p} + 0), {v})", p = in(reg) at, v = inout(wreg) value, options(nostack));
        }
        value
    }

    /// Puts `new` where zero stands; false when something else stands there.
    ///
    /// # Safety
    /// As for [`fetch_add`].
    #[inline(always)]
    pub(crate) unsafe fn replace_zero(at: *mut u32, new: u32) -> bool {
        let mut old = 0u32;
        // SAFETY: as above; the instruction compares with w0 and leaves the old value there.
        unsafe {
            asm!("w0 = cmpxchg32_32({p} + 0, w0, {n})", p = in(reg) at, n = in(wreg) new, inout("w0") old, options(nostack));
        }
        old == 0
    }
}

#[cfg(not(target_arch = "bpf"))]
mod elsewhere {
    use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

    pub(crate) unsafe fn fetch_add(at: *mut u64, n: u64) -> u64 {
        // SAFETY: what the caller promises.
        unsafe { AtomicU64::from_ptr(at) }.fetch_add(n, Relaxed)
    }

    pub(crate) unsafe fn fetch_or(at: *mut u32, bits: u32) -> u32 {
        // SAFETY: what the caller promises.
        unsafe { AtomicU32::from_ptr(at) }.fetch_or(bits, Relaxed)
    }

    pub(crate) unsafe fn fetch_and(at: *mut u32, bits: u32) -> u32 {
        // SAFETY: what the caller promises.
        unsafe { AtomicU32::from_ptr(at) }.fetch_and(bits, Relaxed)
    }

    pub(crate) unsafe fn replace_zero(at: *mut u32, new: u32) -> bool {
        // SAFETY: what the caller promises.
        unsafe { AtomicU32::from_ptr(at) }.compare_exchange(0, new, Relaxed, Relaxed).is_ok()
    }
}
