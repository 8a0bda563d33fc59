//! An instance in the kernel: its maps and links, pinned in bpffs, and the program that uses them.
//!
//! Everything that matters is pinned, so dropping a [`Kernel`], or killing the process that holds it at any moment, stops
//! nothing: packets go on being steered by what the maps say, and the next [`Kernel::open`] adopts them.
//!
//! ```text
//! /sys/fs/bpf/tether/           mode 0700, locked by its daemon
//!     maps/FLOWS4 …             all maps; the directory appears complete, by one rename
//!     link-eth0 …               one XDP link for each interface
//!     local-eth0 …              where backends are on this host, what hangs on egress: see [`local`]
//! ```
//!
//! * [`bpf`][]: the calls of bpf(2) that aya leaves out
//! * [`pins`][]: the pin directory
//! * [`instance`][]: its maps, pinned: created whole, or adopted; `shapes`: what each map has to be
//! * [`load`][]: the programs, given their maps and taken by the kernel
//! * [`resize`][]: other sizes for the flow tables; `migrate`: maps of another version; `transfer`: what both do with flows; `mirror`: what is to be
//!   copied; `copier`: the program that inserts it; `rescue`: what the old program has recorded too late for that
//! * [`rehearsal`][]: the program run with a built packet, on copies of what it writes
//! * [`tap`][]: a program that watches in the place of the one that runs otherwise, and back
//! * [`seed`][]: the fleet's seed that is kept with the maps
//! * [`device`][]: what the kernel says about an interface
//! * [`features`][]: what the kernel says its driver can do; `netlink`: how it is asked; [`release`][]: which kernel it is
//! * [`egress`][]: the interfaces that packets may leave by
//! * [`attach`][]: links
//! * [`local`][]: the program on egress, for backends on this host; [`tc`][]: that as a filter
//! * [`runs`][]: how often the program has run, and for how long
//! * [`decap`][]: the decapsulator, a program without maps
//! * [`grace`][]: waiting until no program run still uses what it saw before
//! * `upgrade`: whether this program can take over what is pinned
//! * [`cleanup`][]: removing every trace

pub mod attach;
pub mod bpf;
pub mod cleanup;
mod copier;
pub mod decap;
pub mod device;
pub mod egress;
mod error;
pub mod features;
pub mod grace;
pub mod instance;
pub mod load;
pub mod local;
mod migrate;
mod mirror;
mod netlink;
pub mod pins;
pub mod rehearsal;
pub mod release;
mod rescue;
pub mod resize;
pub mod runs;
pub mod seed;
mod shapes;
pub mod tap;
pub mod tc;
mod transfer;
mod upgrade;

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::maps::{MapData, RingBuf};

use lb_common::maps::Instance;

pub(crate) use self::error::HIDDEN_PINS;
pub use self::{
    attach::{Attached, Seen, XdpMode},
    cleanup::{Removed, cleanup},
    decap::{attach_decap, detach_decap},
    egress::{Egress, Refusal},
    error::Error,
    load::Loaded,
    local::LocalReplies,
    rehearsal::{Rehearsal, Rehearsals, Rehearsed, run_once},
    shapes::possible_cpus,
    tap::Tap,
    upgrade::{Asked, UpgradeCheck, Verdict, foreseen_capacity, upgrade_check},
};
use self::{grace::GracePeriod, pins::Pins, shapes::Opened};
use super::maps::{Capacity, Maps};
use crate::{capabilities, chain::chain, failpoint};

/// What an instance is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of the interfaces to attach to.
    pub interfaces: Vec<String>,
    /// The pin directory. Its parent exists and is on a bpffs.
    pub bpffs: PathBuf,
    /// Capacities of the maps, should they have to be created; of those that are pinned, the flow tables are made to be of these sizes.
    pub capacity: Capacity,
    /// Seed of the Maglev tables, shared by a fleet; none: the instance's own.
    pub fleet_seed: Option<[u64; 4]>,
}

/// An opened instance. Dropping it detaches nothing.
#[derive(Debug)]
pub struct Kernel {
    loaded: Loaded,
    /// Its maps, kept open, so that they can be pinned again.
    maps: Opened,
    pins: Arc<Pins>,
    /// As they were found at the start, and stay locked: others have them too.
    first_pins: Arc<Pins>,
    tap: Arc<Tap>,
    interfaces: Vec<String>,
    fleet_seed: [u64; 4],
    adopted: bool,
    not_resized: Option<Error>,
    grace: Arc<GracePeriod>,
    local: Arc<LocalReplies>,
}

/// What [`Kernel::attach_again`] has found and done.
#[derive(Debug)]
pub struct Renewal {
    /// The maps were not pinned, and are again.
    pub is_pinned_again: bool,
    /// Each configured interface.
    pub interfaces: Vec<(String, Seen)>,
    /// Why replies of backends on this host are not translated on every interface, if they are to be and are not.
    pub replies: Option<Error>,
}

impl Kernel {
    /// Opens the instance of a pin directory: adopts the maps that are pinned there, or creates them, and loads the program.
    /// Attaches nothing yet.
    ///
    /// Capacities are those of pinned maps if there are any, whatever is asked for; but for the flow tables, which are resized if that can be, and
    /// then links run the new program already.
    ///
    /// # Errors
    /// When the process lacks rights, there is no bpffs, another daemon has the directory, pinned maps are not what this version can use, or the kernel
    /// refuses maps or program. Each says what to do.
    pub fn open(options: &Options) -> Result<Self, Error> {
        Self::open_observed(options, &mut |step| {
            failpoint::pass(match step {
                resize::Step::RepliesSwitched => failpoint::Place::RepliesSwitched,
                _ => failpoint::Place::ResizeStepDone,
            });
        })
    }

    /// The same; `observe` is told of each step of a resize, before the next is done.
    ///
    /// # Errors
    /// As [`Kernel::open`].
    pub fn open_observed(
        options: &Options,
        observe: &mut dyn FnMut(resize::Step),
    ) -> Result<Self, Error> {
        let rights = capabilities::effective(Path::new("/proc/self"));
        let missing = rights.map(capabilities::missing).unwrap_or_default();
        if !missing.is_empty() {
            return Err(Error::Capabilities { missing });
        }
        let pins = Arc::new(Pins::open(&options.bpffs)?);
        local::settle(&pins)?;
        local::follow_names(&pins)?;
        let grace = Arc::new(GracePeriod::new()?);
        let adopted = pins.has_maps();
        let mut not_resized = None;
        let loaded = if adopted {
            let (loaded, refused) = resize::open(&pins, &options.capacity, &grace, observe)?;
            not_resized = refused;
            loaded
        } else {
            let loaded = instance::create(&pins, options.capacity)
                .and_then(load::Prepared::load)
                .map_err(Error::of_this_kernel);
            if loaded.is_err()
                && let Err(error) = pins.discard_maps()
            {
                // Nothing runs on these maps, and the next attempt may ask for others.
                tracing::error!(error = chain(&error), "maps that nothing uses stay behind");
            }
            loaded?
        };
        let (maps, ..) = shapes::open_pinned(&pins.maps())?;
        let fleet_seed = options.fleet_seed.unwrap_or(loaded.instance().fleet_seed);
        let tap = Tap::new(&loaded, Arc::clone(&pins), Arc::clone(&grace))?;
        let local_reply = match loaded.local_reply_fd() {
            Ok(program) => Ok(program.try_clone_to_owned().map_err(|source| Error::Bpf {
                doing: "keeping the program for replies open",
                source,
            })?),
            Err(reason) => Err(reason.to_owned()),
        };
        let local = LocalReplies::new(local_reply, Arc::clone(&pins), options.interfaces.clone())?;
        Ok(Self {
            loaded,
            maps,
            first_pins: Arc::clone(&pins),
            pins,
            tap: Arc::new(tap),
            interfaces: options.interfaces.clone(),
            fleet_seed,
            adopted,
            not_resized,
            grace,
            local: Arc::new(local),
        })
    }

    /// The maps, as memory.
    pub fn maps(&self) -> Arc<Maps> {
        self.loaded.maps()
    }

    /// The loaded program and its maps.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// As [`Loaded::log`].
    ///
    /// # Errors
    /// As there.
    #[cfg(feature = "log")]
    pub fn log(
        &mut self,
    ) -> Result<impl Future<Output = std::io::Result<()>> + use<>, aya_log::Error> {
        self.loaded.log()
    }

    /// The instance's own facts, as they were when it was created.
    pub fn instance(&self) -> Instance {
        self.loaded.instance()
    }

    /// Seed of the Maglev tables: the configured one, else the instance's own.
    pub fn fleet_seed(&self) -> [u64; 4] {
        self.fleet_seed
    }

    /// Whether the maps were there before.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Why the flow tables are not of the sizes that were asked for, if they are not.
    pub fn not_resized(&self) -> Option<&Error> {
        self.not_resized.as_ref()
    }

    /// What blocks until no program run that began before is still going.
    pub fn grace(&self) -> Arc<dyn Fn() + Send + Sync> {
        let grace = Arc::clone(&self.grace);
        Arc::new(move || grace.wait())
    }

    /// Attaches the program to the configured interfaces, or atomically replaces the program of links that are there; then
    /// detaches from interfaces that are not configured any more.
    ///
    /// # Errors
    /// When an interface is missing (unless it had the program and has gone since, and another is left), runs another XDP program, or cannot take this one. Links of XDP programs that this call made are undone;
    /// links of before stay.
    pub fn attach(&mut self) -> Result<Vec<Attached>, Error> {
        // First, and last to go: a reply that leaves with its backend's own source is reset by the client.
        self.local.renew()?;
        let attached = self.tap.attach(&self.interfaces)?;
        self.local.discard_others()?;
        Ok(attached)
    }

    /// Sees to it that the maps are still pinned, and the program on each configured interface: one may have been recreated, or somebody may have
    /// removed pins or detached the program. What is wrong with one keeps no other from being attached.
    ///
    /// # Errors
    /// When nothing can be seen to: the pins cannot be read, or made again.
    pub fn attach_again(&mut self) -> Result<Renewal, Error> {
        let is_pinned_again = self.pin_again()?;
        // Before flows come in where the program is attached again.
        let replies = match self.local.is_in_order() {
            Ok(true) => None,
            Ok(false) => self.local.renew().err(),
            Err(error) => Some(error),
        };
        let interfaces = self.tap.attach_each(&self.interfaces)?;
        Ok(Renewal {
            is_pinned_again,
            interfaces,
            replies,
        })
    }

    /// True if that was called for.
    fn pin_again(&mut self) -> Result<bool, Error> {
        if !self.pins.is_in_place() {
            // What else has the pins needs only to know where they are.
            self.pins = if self.first_pins.is_in_place() {
                // What was mounted over them is gone again.
                Arc::clone(&self.first_pins)
            } else {
                Arc::new(Pins::open(self.pins.directory())?)
            };
        }
        if self.pins.has_all(&self.maps) {
            return Ok(false);
        }
        self.pins.pin_again(&self.maps)?;
        Ok(true)
    }

    /// What translates replies of backends on this host.
    pub fn local_replies(&self) -> Arc<LocalReplies> {
        Arc::clone(&self.local)
    }

    /// The interfaces that packets may leave by.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub fn egress(&self) -> Result<Egress, Error> {
        let map = self.loaded.egress_fd().try_clone_to_owned();
        let map = map.map_err(|source| Error::Bpf {
            doing: "keeping the map of egress interfaces open",
            source,
        })?;
        Ok(Egress::new(map, self.interfaces.clone()))
    }

    /// What puts a program that watches in the place of the one that runs otherwise.
    pub fn tap(&self) -> Arc<Tap> {
        Arc::clone(&self.tap)
    }

    /// What rehearsals of the program are made of.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub fn rehearsals(&self) -> Result<Rehearsals, Error> {
        Rehearsals::of(&self.loaded)
    }

    /// What the program tells of flows that a deadline has closed; to be asked for once.
    ///
    /// # Errors
    /// As [`Loaded::take_notices`].
    pub fn take_notices(&mut self) -> Result<RingBuf<MapData>, Error> {
        self.loaded.take_notices()
    }

    /// The loaded program, for as long as it is held.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub fn program(&self) -> Result<OwnedFd, Error> {
        let program = self.loaded.program_fd().try_clone_to_owned();
        program.map_err(|source| Error::Bpf {
            doing: "keeping the program open",
            source,
        })
    }

    /// Whether the program is still attached to all configured interfaces: one may have been recreated, or somebody may have
    /// detached it.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub fn is_attached(&self) -> Result<bool, Error> {
        Ok(attach::is_attached(&self.pins, &self.interfaces)? && self.local.is_in_order()?)
    }
}
