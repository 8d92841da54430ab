//! Counts what a thread has allocated, so that a reader that takes too much is found.
#![allow(unsafe_code, reason = "an allocator is unsafe by its trait; all of it is passed on to the system's")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    /// Bytes that are taken, since [`begin`]; what was taken earlier and is given back counts below zero.
    static TAKEN: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// Counts from here.
pub fn begin() {
    TAKEN.set(0);
    PEAK.set(0);
}

/// The most bytes that this thread had taken at a time since [`begin`].
pub fn peak() -> usize {
    usize::try_from(PEAK.get()).unwrap_or(0)
}

fn count(bytes: isize) {
    // A thread that is ending has no counters any more.
    let taken = TAKEN.try_with(|taken| {
        taken.set(taken.get().saturating_add(bytes));
        taken.get()
    });
    let _ = PEAK.try_with(|peak| peak.set(peak.get().max(taken.unwrap_or(0))));
}

fn size(layout: Layout) -> isize {
    isize::try_from(layout.size()).unwrap_or(isize::MAX)
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(size(layout));
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(size(layout));
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-size(layout));
        unsafe { System.dealloc(pointer, layout) }
    }
}
