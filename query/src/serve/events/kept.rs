//! Sheets that are kept for others who ask for the same: for a moment those of the end of the log, which all
//! who follow it take together, and beside them those of older records.
//!
//! Who asks first makes a sheet, the others wait for it. It is found by everything that it depends on,
//! the rows that its reader may see included: nobody is given what was made for somebody with other rights.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::OnceCell;

use super::coding::Coding;
use super::sheet::{Form, Sheet};

/// Bytes of sheets that are kept, at either place.
const BYTES_MAX: usize = 16 << 20;

/// Sheets that are begun, at either place; beyond it those that nobody waits for are forgotten.
const BEGUN_MAX: usize = 1_024;

/// What a sheet depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The format, the filter, and the rows that its reader may see.
    pub(crate) shape: Arc<str>,
    pub(crate) form: Form,
    pub(crate) coding: Coding,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) limit: usize,
    pub(crate) bytes: usize,
}

/// Where a sheet is made, or waited for.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) sheet: OnceCell<Arc<Sheet>>,
    /// Who asked first: who makes it waits behind his own requests, and others need not.
    pub(crate) who: Arc<str>,
}

/// Sheets by what they depend on; the oldest go first.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    slots: HashMap<Key, Arc<Slot>>,
    /// Those that are made, with their bytes.
    made: VecDeque<(Key, usize)>,
    bytes: usize,
}

impl Kept {
    /// The slot of a sheet, for somebody who asks.
    pub(crate) fn slot(&mut self, key: &Key, who: &Arc<str>) -> Arc<Slot> {
        if let Some(slot) = self.slots.get(key) {
            return Arc::clone(slot);
        }
        if self.slots.len() >= self.made.len() + BEGUN_MAX {
            self.slots.retain(|_, slot| slot.sheet.initialized() || Arc::strong_count(slot) > 1);
        }
        let slot = Arc::new(Slot { sheet: OnceCell::new(), who: Arc::clone(who) });
        self.slots.insert(key.clone(), Arc::clone(&slot));
        slot
    }

    /// A sheet was made, by who says so. It stays if it cannot change any more, and unless everything
    /// was forgotten meanwhile.
    pub(crate) fn made(&mut self, key: Key, slot: &Arc<Slot>, is_final: bool) {
        let Some(sheet) = slot.sheet.get().filter(|_| self.slots.get(&key).is_some_and(|own| Arc::ptr_eq(own, slot)))
        else {
            return;
        };
        if !is_final || sheet.bytes > BYTES_MAX / 2 {
            self.slots.remove(&key);
            return;
        }
        let bytes = sheet.bytes + 256;
        self.bytes += bytes;
        self.made.push_back((key, bytes));
        while self.bytes > BYTES_MAX {
            let Some((key, bytes)) = self.made.pop_front() else { break };
            self.bytes -= bytes;
            self.slots.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::events::page::Page;

    fn key(from: u64) -> Key {
        let (form, coding) = (Form::Lines, Coding::Identity);
        Key { shape: "raw".into(), form, coding, from, to: from + 1, limit: 1, bytes: 1 }
    }

    fn slot(kept: &mut Kept, from: u64) -> Arc<Slot> {
        kept.slot(&key(from), &"ann".into())
    }

    fn sheet(bytes: usize) -> Arc<Sheet> {
        Arc::new(Sheet { bytes, ..Sheet::of(&Page::new(0, 1, 1)) })
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_goes_first() {
        let mut kept = Kept::default();
        for n in 0..100 {
            let own = slot(&mut kept, n);
            own.sheet.set(sheet(1 << 20)).unwrap();
            kept.made(key(n), &own, true);
            assert!(kept.bytes <= BYTES_MAX && kept.slots.len() == kept.made.len());
        }
        assert!(slot(&mut kept, 99).sheet.initialized() && !slot(&mut kept, 0).sheet.initialized());
    }

    #[test]
    fn what_is_coded_otherwise_is_another_sheet() {
        let mut kept = Kept::default();
        let codings = [Coding::Identity, Coding::Gzip, Coding::Zstd];
        let slots = codings.map(|coding| kept.slot(&Key { coding, ..key(1) }, &"ann".into()));
        assert!(!Arc::ptr_eq(&slots[0], &slots[1]) && !Arc::ptr_eq(&slots[1], &slots[2]));
        assert!(Arc::ptr_eq(&kept.slot(&Key { coding: Coding::Gzip, ..key(1) }, &"bob".into()), &slots[1]));
    }

    #[test]
    fn what_may_change_or_is_forgotten_meanwhile_is_not_kept() {
        let mut kept = Kept::default();
        let own = slot(&mut kept, 1);
        own.sheet.set(sheet(1)).unwrap();
        kept.made(key(1), &own, false);
        assert!(!slot(&mut kept, 1).sheet.initialized());
        // Everything is forgotten while one is made: it does not come back.
        let own = slot(&mut kept, 2);
        kept = Kept::default();
        let other = slot(&mut kept, 2);
        own.sheet.set(sheet(1)).unwrap();
        kept.made(key(2), &own, true);
        assert!(!other.sheet.initialized() && Arc::ptr_eq(&slot(&mut kept, 2), &other) && kept.bytes == 0);
    }

    #[test]
    fn sheets_that_nobody_waits_for_any_more_are_forgotten() {
        let mut kept = Kept::default();
        let waits = slot(&mut kept, u64::MAX - 1);
        for n in 0..10 * BEGUN_MAX as u64 {
            drop(slot(&mut kept, n));
            assert!(kept.slots.len() <= BEGUN_MAX + 1);
        }
        assert!(Arc::ptr_eq(&slot(&mut kept, u64::MAX - 1), &waits));
    }
}
