//! Has entries inserted into the flow tables, by the program that alone may do so: the daemon never inserts.

use std::{error::Error as _, io};

use aya::programs::{ProgramError, TestRun as _, TestRunOptions, Xdp};
use lb_common::{
    flow::{
        copy::{BATCH, FRAME_LEN, Kind, Order, Outcome},
        word::Word,
    },
    nat::TranslationWord,
};

use super::{error::Error, load::Loaded, shapes::refused_call};
use crate::dataplane::{array::Array, table::TableKey};

/// An entry on its way to another table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Traveller<K> {
    pub(super) key: K,
    pub(super) word: Word,
    /// Fact for people: first seen, in ticks since boot.
    pub(super) first_seen: u32,
    /// How its packets are translated, if they are.
    pub(super) translation: Option<TranslationWord>,
}

/// What became of entries that were to be inserted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    /// They are in the table.
    pub(super) done: u64,
    /// Their key had an entry, which stands.
    pub(super) known: u64,
    /// There was no place for these, whose flows have sent more than a SYN.
    pub(super) homeless: u64,
}

/// The program and its orders, for the flow tables of a loaded instance.
pub(super) struct Copier {
    loaded: Loaded,
    orders: Array<Order>,
    pending: u32,
    copied: Copied,
}

impl Copier {
    /// Loads the program.
    ///
    /// # Errors
    /// When the kernel refuses it or the map of its orders.
    pub(super) fn new(mut loaded: Loaded) -> Result<Self, Error> {
        let orders = loaded.load_copy_program()?;
        Ok(Self {
            loaded,
            orders,
            pending: 0,
            copied: Copied::default(),
        })
    }

    /// What it was made for.
    pub(super) fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// Unloads the program.
    pub(super) fn into_loaded(mut self) -> Result<Loaded, Error> {
        self.loaded.unload_copy_program()?;
        Ok(self.loaded)
    }

    /// Has all of them inserted.
    ///
    /// # Errors
    /// When the kernel does not run the program.
    pub(super) fn insert<K: TableKey>(
        &mut self,
        travellers: impl Iterator<Item = Traveller<K>>,
        kind: Kind,
    ) -> Result<Copied, Error> {
        self.copied = Copied::default();
        for traveller in travellers {
            self.orders.set(
                self.pending,
                &Order {
                    key: traveller.key.to_words(),
                    value: traveller.word.0,
                    translation: traveller.translation.map_or(0, |word| word.0),
                    has_translation: u64::from(traveller.translation.is_some()),
                    first_seen: traveller.first_seen,
                    kind: kind as u32,
                    outcome: Outcome::Pending as u32,
                    version: K::VERSION as u32,
                },
            );
            self.pending += 1;
            if self.pending == BATCH {
                self.flush()?;
            }
        }
        self.flush()?;
        Ok(self.copied)
    }

    /// Has the orders carried out that are pending.
    fn flush(&mut self) -> Result<(), Error> {
        if self.pending == 0 {
            return Ok(());
        }
        let program = self
            .loaded
            .copy_program()
            .expect("it is loaded as long as this value lives");
        // A signal interrupts the runs after some of them; orders that were carried out are not carried out again.
        while let Err(error) = run(program, self.pending) {
            if error.raw_os_error() != Some(libc::EINTR) {
                return Err(refused_call("running the program that copies flows")(error));
            }
        }
        for index in 0..self.pending {
            let order = self.orders.get(index);
            match Outcome::from_code(order.outcome) {
                Outcome::Done => self.copied.done += 1,
                Outcome::Known => self.copied.known += 1,
                // An embryo without a place is no flow yet: its client's next packet makes it one.
                Outcome::Full if Word(order.value).is_nascent() => {}
                Outcome::Full => self.copied.homeless += 1,
                Outcome::Pending => {
                    return Err(refused_call("copying flows")(io::Error::other(
                        "the program has left an order undone, which is a fault of this tether",
                    )));
                }
            }
        }
        self.pending = 0;
        Ok(())
    }
}

/// Runs the program so many times, beginning with the first order.
fn run(program: &Xdp, times: u32) -> io::Result<()> {
    let mut options = TestRunOptions::new();
    let frame = [0; FRAME_LEN];
    options.data_in = Some(&frame);
    options.repeat = times;
    program.test_run(options).map(drop).map_err(system_error)
}

/// The kernel's answer in an error of aya's.
pub(super) fn system_error(error: ProgramError) -> io::Error {
    let mut next = error.source();
    while let Some(source) = next {
        if let Some(system) = source.downcast_ref::<io::Error>()
            && let Some(code) = system.raw_os_error()
        {
            return io::Error::from_raw_os_error(code);
        }
        next = source.source();
    }
    io::Error::other(error)
}
