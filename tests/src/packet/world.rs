//! What a test builds before it sends a packet: services, tables, backends, with fresh maps for each test.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, MutexGuard, atomic::Ordering},
    time::{Duration, Instant},
};

use lb_common::{
    backend::{Backend, NextHop},
    clock::{TICK_NS, Tick},
    counters::{Counter, CpuState},
    flow::{
        FlowKey as _, v6,
        word::{BackendRef, State, Word},
    },
    hash::Seed,
    maglev::{Slot, TableRef, slot_index},
    maps::{IPV6_INDEX, KEPT_NS, MAIN_INDEX, PROGRAMS, default},
    net::{Address, IpVersion},
    notice::Notice,
    repeats::Repeats,
    service::Service,
    tcp,
    verdict::Reason,
    vip::{VipBucket, VipEntry, WAYS, homes},
};
use lb_userspace::dataplane::{
    array::Array,
    kernel::{Rehearsals, bpf::remove},
    maps::{self, Maps, Measured, coarse_ns},
};

use super::{
    answer::BackendSpec,
    check::{Change, Expect, Run, passed},
    frame::{Cut, Packet},
    icmp::{About, without_checksum},
    kernel::{FLOW_SEED, Tether},
    pcap::Capture,
    version::{on_wire, version},
};

/// Address of the service that tests use if nothing else is said.
pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Its port.
pub const VIP_PORT: u16 = 443;
/// Its id.
pub const SERVICE: u16 = 1;
/// A client that tests use if nothing else is said.
pub const CLIENT: Client = Client(Ipv4Addr::new(198, 51, 100, 7), 40_000);

/// Port of all backends.
pub const BACKEND_PORT: u16 = 8_080;

/// Keys the choice of slots in all services of tests.
const SLOT_SEED: Seed = Seed::new([11, 0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93]);

/// A client's endpoint: address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client(pub Ipv4Addr, pub u16);

impl Client {
    /// A segment without data from it to the service of [`World::new`].
    pub fn sends(&self, flags: u8) -> Packet {
        Packet::tcp((self.0, self.1), (VIP, VIP_PORT), flags)
    }

    /// Its first segment.
    pub fn syn(&self) -> Packet {
        self.sends(tcp::SYN)
    }

    /// The acknowledgement that follows [`Client::syn`].
    pub fn ack(&self) -> Packet {
        let next = self.syn().as_tcp().seq.wrapping_add(1);
        self.sends(tcp::ACK).seq(next)
    }
}

thread_local! {
    static HAS_WORLD: Cell<bool> = const { Cell::new(false) };
}

/// The maps, fresh, and the program, for one test.
pub struct World {
    /// The maps, as memory.
    pub maps: Arc<Maps>,
    tether: MutexGuard<'static, Tether>,
    capture: RefCell<Capture>,
    next_slot: u32,
}

impl World {
    /// A small world: [`SERVICE`] at [`VIP`] and [`VIP_PORT`], all slots of whose table are backend 1, of mode `l2`; backend 2 is
    /// there too, and no service names it.
    pub fn new() -> Self {
        Self::of(Tether::small)
    }

    /// The same with a flow table of the default size.
    pub fn full_size() -> Self {
        Self::of(Tether::full_size)
    }

    /// The same in an instance that has room for translations.
    pub fn translating() -> Self {
        Self::of(Tether::translating)
    }

    /// The same with what clients of [`SERVICE`] send again being counted.
    ///
    /// # Panics
    /// If the kernel does not take the program that counts it.
    pub fn measuring() -> Self {
        let world = Self::of(Tether::measuring);
        world.counts_first();
        world.measure(SERVICE, true);
        world
    }

    /// The program that counts what clients send again comes before all others.
    fn counts_first(&self) {
        let mut handed_on_to = self.tether.loaded.handed_on_to();
        assert!(
            handed_on_to.any(|(index, ..)| index == MAIN_INDEX),
            "the kernel has not taken the program that counts"
        );
    }

    /// Has what clients of a service send again be counted, or not.
    ///
    /// # Panics
    /// If there is no program for that.
    pub fn measure(&self, service: u16, measures: bool) {
        self.measured().measure(service, measures);
    }

    /// What the clients of a backend have sent again.
    ///
    /// # Panics
    /// If there is no program that counts it.
    pub fn repeats(&self, backend: u32) -> Repeats {
        self.measured().counted(backend)
    }

    fn measured(&self) -> &Measured {
        let measured = self.maps.measured.as_ref();
        measured.expect("a world that measures")
    }

    /// The same with a flow table for as many flows as there are ports.
    pub fn translating_many() -> Self {
        Self::of(Tether::translating_many)
    }

    /// The same as [`World::new`] of programs that guard services.
    pub fn guarding() -> Self {
        Self::of(Tether::guarding)
    }

    /// The same as [`World::translating`] of programs that guard services.
    pub fn guarding_translating() -> Self {
        Self::of(Tether::guarding_translating)
    }

    /// The same as [`World::guarding`], with what clients of each of these services send again being counted.
    ///
    /// # Panics
    /// If the kernel does not take the program that counts it.
    pub fn guarding_measuring(services: impl IntoIterator<Item = u16>) -> Self {
        Self::of(Tether::guarding_measuring).measuring_each(services)
    }

    /// The same as [`World::guarding_translating`], with what clients of each of these services send again being counted.
    ///
    /// # Panics
    /// If the kernel does not take the program that counts it.
    pub fn guarding_translating_measuring(services: impl IntoIterator<Item = u16>) -> Self {
        Self::of(Tether::guarding_translating_measuring).measuring_each(services)
    }

    fn measuring_each(self, services: impl IntoIterator<Item = u16>) -> Self {
        self.counts_first();
        for service in services {
            self.measure(service, true);
        }
        self
    }

    /// The same as [`World::new`] with `backend` as backend 1.
    pub fn with(backend: &BackendSpec) -> Self {
        let world = Self::new();
        world.backend(backend);
        world
    }

    /// # Panics
    /// If this thread has a world already: it would wait for itself.
    fn of(tether: fn() -> MutexGuard<'static, Tether>) -> Self {
        assert!(
            !HAS_WORLD.replace(true),
            "one world at a time: drop the other first"
        );
        let tether = tether();
        let maps = tether.loaded.maps();
        let mut world = Self {
            maps,
            tether,
            capture: RefCell::default(),
            next_slot: 0,
        };
        world.zero();
        world.backend(&BackendSpec::l2(1));
        world.backend(&BackendSpec::l2(2));
        world.service(SERVICE, VIP, VIP_PORT, &[1]);
        world
    }

    /// Zeroed maps are as fresh as new ones: the kernel zeroes new ones too.
    fn zero(&self) {
        // By name, so that none is forgotten that comes to be.
        let Maps {
            capacity: _,
            instance: _,
            flows4,
            facts4,
            nat4,
            flows6,
            facts6,
            nat6,
            slots,
            hold,
            affinities,
            guards,
            ranges,
            sources,
            tables,
            services,
            backends,
            vips4,
            vips6,
            endpoints,
            endpoints4,
            endpoints6,
            pairs,
            ports,
            links,
            counters,
            cpus,
            measured,
        } = &*self.maps;
        flows4.clear();
        facts4.clear();
        nat4.clear();
        flows6.clear();
        facts6.clear();
        nat6.clear();
        slots.clear();
        hold.clear();
        affinities.clear();
        guards.clear();
        ranges.clear();
        sources.clear();
        tables.clear();
        services.clear();
        backends.clear();
        vips4.clear();
        vips6.clear();
        endpoints.clear();
        endpoints4.clear();
        endpoints6.clear();
        pairs.clear();
        ports.clear();
        links.clear();
        counters.clear();
        cpus.clear();
        if let Some(measured) = measured {
            measured.clear();
        }
        drop(self.notices());
    }

    /// Names of the programs that packets are handed on to.
    pub fn programs(&self) -> Vec<&'static str> {
        let programs = self.tether.loaded.handed_on_to();
        programs.map(|(_, name, _)| name).collect()
    }

    /// What the program has told the daemon since this was asked last.
    pub fn notices(&self) -> Vec<Notice> {
        self.tether.notices()
    }

    /// Writes a backend's entry, as it is now and with its first next hop.
    pub fn backend(&self, spec: &BackendSpec) {
        let entry = Backend {
            state: spec.state(0).0,
            identity: u64::from(spec.id) << 8 | u64::from(spec.generation) | 1 << 63,
            address: spec.address().into(),
            port: BACKEND_PORT,
            service: SERVICE,
            // The hop that is not in force must not be looked at.
            hops: [
                spec.hop,
                NextHop {
                    destination: [0xee; 6],
                    source: [0xee; 6],
                    ifindex: 999,
                    ..NextHop::default()
                },
            ],
            ..Backend::default()
        };
        self.maps.backends.set(spec.id, &entry);
    }

    /// What rehearsals of the program on these maps are made of.
    ///
    /// # Panics
    /// If there are no file descriptors left.
    pub fn rehearsals(&self) -> Rehearsals {
        Rehearsals::of(&self.tether.loaded).expect("keeping the maps open")
    }

    /// Whether flows of [`SERVICE`] are translated.
    pub fn translates(&self) -> bool {
        self.maps.services.get(u32::from(SERVICE)).traits & Service::TRANSLATES != 0
    }

    /// Has a service place clients and not flows.
    pub fn place_clients(&self, service: u16) {
        let entry = Service {
            affinity: 1,
            affinity_ticks: 1_000,
            ..self.maps.services.get(u32::from(service))
        };
        self.maps.services.set(u32::from(service), &entry);
    }

    /// Has a client keep a backend at a service, as the daemon writes it, whatever it kept before.
    ///
    /// # Panics
    /// If there is no room.
    pub fn keep(&self, client: Client, service: u16, backend: BackendRef) {
        self.keep_since(self.now(), client, service, backend);
    }

    /// The same of a client that had a flow last at this moment.
    ///
    /// # Panics
    /// If there is no room.
    pub fn keep_since(&self, seen: Tick, client: Client, service: u16, backend: BackendRef) {
        let address = Address::from(on_wire(client.0));
        let key = v6::Key::new(address.words(), 0, service);
        let value = Word::live(State::Pin, backend, 0, seen, 0).0;
        let affinities = &self.maps.affinities;
        let homes = key.homes(&FLOW_SEED, affinities.len());
        let is_own = |entry: &v6::Entry| entry.value != 0 && entry.key == key;
        let is_free = |entry: &v6::Entry| entry.value == 0;
        for suits in [&is_own as &dyn Fn(&v6::Entry) -> bool, &is_free] {
            for index in homes {
                let mut bucket = affinities.get(index);
                if let Some(entry) = bucket.entries.iter_mut().find(|entry| suits(entry)) {
                    *entry = v6::Entry { key, value };
                    affinities.set(index, &bucket);
                    return;
                }
            }
        }
        panic!("no room for another client");
    }

    /// Forgets all clients, as the daemon does: what it has been known by is left.
    pub fn forget_clients(&self) {
        let affinities = &self.maps.affinities;
        for index in 0..affinities.len() {
            let mut bucket = affinities.get(index);
            for entry in &mut bucket.entries {
                entry.value = Word::EMPTY.0;
            }
            affinities.set(index, &bucket);
        }
    }

    /// Gives [`SERVICE`] a table of these owners' slots, unchanged for ages.
    pub fn share_between(&mut self, owners: &[u32]) {
        self.divide(SERVICE, owners);
    }

    /// Gives a backend that is there another state.
    pub fn put_state(&self, spec: &BackendSpec) {
        self.maps.set_state(spec.id, spec.state(0));
    }

    /// Swaps a backend to its second next hop, that of `spec`.
    pub fn second_hop(&self, spec: &BackendSpec) {
        self.maps.set_hop(spec.id, 1, &spec.hop);
        self.maps.set_state(spec.id, spec.state(1));
    }

    /// Makes a service, with a table of the slots' owners, unchanged for ages; without one if there are none.
    pub fn service(&mut self, id: u16, vip: Ipv4Addr, port: u16, owners: &[u32]) {
        let entry = Service {
            table: 0,
            seed: SLOT_SEED,
            identity: u64::from(id) | 1 << 63,
            vip: on_wire(vip).into(),
            port,
            traits: 0,
            affinity: 0,
            affinity_ticks: 0,
        };
        self.maps.services.set(u32::from(id), &entry);
        self.direct(VipEntry::of(Self::vip_key(vip, port), id));
        if !owners.is_empty() {
            self.divide(id, owners);
        }
    }

    /// Gives a service a table of these owners' slots, unchanged for ages.
    fn divide(&mut self, service: u16, owners: &[u32]) {
        let long_ago = Tick(self.now().0.wrapping_sub(1 << 20));
        let slots: Vec<Slot> = owners
            .iter()
            .map(|owner| Slot::new(*owner, 0, long_ago))
            .collect();
        self.table(service, &slots);
    }

    /// Gives a service a table of these slots.
    pub fn table(&mut self, service: u16, slots: &[Slot]) {
        let offset = self.next_slot;
        self.next_slot += slots.len() as u32;
        for (index, slot) in slots.iter().enumerate() {
            self.maps.tables.set(offset + index as u32, slot);
        }
        self.maps
            .set_table(service, TableRef::new(offset, slots.len() as u32, 1));
    }

    /// The slot of a client in a table of `size` slots.
    pub fn slot_of(client: Client, attempt: u32, size: u32) -> usize {
        let word = client.key().client_word(&SLOT_SEED);
        slot_index(word, &SLOT_SEED, attempt, size) as usize
    }

    /// What the directory of the version in force knows an address and port by.
    pub fn vip_key(vip: Ipv4Addr, port: u16) -> u64 {
        match on_wire(vip) {
            IpAddr::V4(vip) => VipEntry::key(vip.to_bits(), port),
            vip => VipEntry::key6(Address::from(vip).words(), port),
        }
    }

    /// Says that an address is the VIP of [`SERVICE`], and whether it is the host's own too.
    pub fn vip(&self, address: Ipv4Addr, is_host_owned: bool) {
        let key = Self::vip_key(address, 0);
        match (version(), is_host_owned) {
            (IpVersion::V4, true) => self.direct(VipEntry::of(key, VipEntry::HOST_OWNED)),
            (IpVersion::V4, false) => self.direct(VipEntry::of(key, 0)),
            (IpVersion::V6, true) => {}
            (IpVersion::V6, false) => self.direct(VipEntry::of(key, SERVICE)),
        }
    }

    /// Writes an entry of the directory of VIPs of the version in force.
    ///
    /// # Panics
    /// If both its buckets are full.
    pub fn direct(&self, entry: VipEntry) {
        Self::put_into(self.maps.vips(version()), entry);
    }

    /// Writes an entry of a directory.
    ///
    /// # Panics
    /// If both its buckets are full.
    pub fn put_into(directory: &Array<VipBucket>, entry: VipEntry) {
        for bucket in homes(entry.own_key(), directory.len()) {
            for way in 0..WAYS {
                let word = directory.word(bucket, way);
                let held = word.load(Ordering::SeqCst);
                if held == 0 || VipEntry(held).is_for(entry.own_key()) {
                    word.store(entry.0, Ordering::SeqCst);
                    return;
                }
            }
        }
        let buckets: Vec<VipBucket> = (0..directory.len())
            .map(|bucket| directory.get(bucket))
            .collect();
        panic!("no place for {entry:?} in {buckets:?}");
    }

    /// The present tick, of which at least half a second is left, so that what follows happens in it.
    pub fn now(&self) -> Tick {
        const MARGIN_NS: u64 = 500_000_000;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let ns = coarse_ns();
            if ns % TICK_NS < TICK_NS - MARGIN_NS {
                return Tick::from_ns(ns);
            }
            assert!(Instant::now() < deadline, "the coarse clock stands still");
            std::thread::yield_now();
        }
    }

    /// Has the flow table only be read for a while from now on.
    pub fn hold(&self, time: Duration) {
        let until_ns = coarse_ns() + time.as_nanos() as u64;
        self.maps.hold.word(0, 0).store(until_ns, Ordering::SeqCst);
    }

    /// Makes the buckets of resets as if just so many had been saved up.
    pub fn save_resets(&self, saved: u64) {
        let cost_ns = 1_000_000_000 / default::RESETS_PER_SECOND;
        self.tokens(|cpu, now_ns| cpu.reset_paid_ns = now_ns - saved * cost_ns);
    }

    /// The same for answers by ICMP.
    pub fn save_answers(&self, saved: u64) {
        let cost_ns = 1_000_000_000 / default::ANSWERS_PER_SECOND;
        self.tokens(|cpu, now_ns| cpu.answer_paid_ns = now_ns - saved * cost_ns);
    }

    /// The same with as much saved up as is just enough for an answer that can wait.
    pub fn save_answers_for_leisure(&self) {
        self.save_answers(Self::KEPT_ANSWERS + 1);
    }

    /// Answers by ICMP that those which can wait leave to others.
    pub const KEPT_ANSWERS: u64 = default::ANSWERS_PER_SECOND * KEPT_NS / 1_000_000_000;

    /// The same for adoptions.
    pub fn save_adoptions(&self, saved: u64) {
        let cost_ns = 1_000_000_000 / default::ADOPTIONS_PER_SECOND;
        self.tokens(|cpu, now_ns| cpu.adoption_paid_ns = now_ns - saved * cost_ns);
    }

    /// Nanoseconds of the coarse clock up to which each CPU's adoptions are paid for, and those of the clock after that.
    pub fn adoptions_paid(&self) -> (Vec<u64>, u64) {
        let cpus = &self.maps.cpus;
        let paid = (0..cpus.len()).map(|cpu| cpus.get(cpu).adoption_paid_ns);
        (paid.collect(), coarse_ns())
    }

    fn tokens(&self, save: impl Fn(&mut CpuState, u64)) {
        for cpu in 0..self.maps.cpus.len() {
            let mut state = self.maps.cpus.get(cpu);
            save(&mut state, coarse_ns());
            self.maps.cpus.set(cpu, &state);
        }
    }

    /// Sends a packet through the program.
    pub fn send(&self, packet: &Packet) -> Run {
        self.send_bytes(&packet.bytes(), packet.counted())
    }

    /// Sends a frame that is no whole packet; `counted` is its length as counters are to count it.
    pub fn send_bytes(&self, frame: &[u8], counted: u32) -> Run {
        self.observe(frame, counted, |tether| tether.run(frame))
    }

    /// Sends the beginning of a frame. One that is cut within its headers is the host's, which is asserted; what comes of any other is given.
    ///
    /// # Panics
    /// If the first is anything else.
    #[track_caller]
    pub fn send_cut(&self, cut: &Cut) -> Option<Run> {
        let run = self.send_bytes(&cut.frame, cut.counted);
        if cut.has_headers {
            return Some(run);
        }
        run.expect(&passed(Reason::Malformed).counting(0));
        None
    }

    /// Sends an error cut to each length. As long as it has not all that is needed of what it quotes, whose IP header has so many bytes, it is the host's. Else all
    /// is as `expected` says of the message that is heard of it whole, but for what is missing.
    ///
    /// # Panics
    /// If it is anything else.
    #[track_caller]
    pub fn send_cuts_of_error(
        &self,
        (told, heard): (&Packet, &Packet),
        about: About,
        quoted_header: usize,
        expected: impl Fn(&Packet) -> Expect,
    ) {
        let whole = told.bytes();
        let needed = told.network() + told.headers_len() + 8 + quoted_header + 4;
        for length in 14..whole.len() {
            let counted = if length < needed { 0 } else { told.counted() };
            let run = self.send_bytes(&whole[..length], counted);
            if length < needed {
                let reason = run.reason();
                assert!(matches!(reason, Reason::NotService | Reason::Malformed));
                run.expect(&passed(reason));
                continue;
            }
            let heard = if length < needed + 14 {
                &without_checksum(heard, told, about, quoted_header)
            } else {
                heard
            };
            run.expect(&expected(heard).cut_by(whole.len() - length));
        }
    }

    /// Has the stack send a packet out, through the program for what backends on this host send back.
    pub fn leave(&self, packet: &Packet) -> Run {
        self.leave_bytes(&packet.bytes())
    }

    /// The same of a frame that is no whole packet.
    pub fn leave_bytes(&self, frame: &[u8]) -> Run {
        self.observe(frame, frame.len() as u32, |tether| tether.run_reply(frame))
    }

    /// Sends a packet in a frame that has no room for another header.
    pub fn send_without_headroom(&self, packet: &Packet) -> Run {
        let frame = packet.bytes();
        self.observe(&frame, packet.counted(), |tether| {
            tether.run_without_headroom(&frame)
        })
    }

    /// Sends a frame and tells the action only: the quick way, for floods.
    pub fn hit(&self, frame: &[u8]) -> u32 {
        self.tether.hit(frame)
    }

    /// Does something while the program for IPv6 is not in its place.
    ///
    /// # Panics
    /// If the kernel does not take it away or put it back.
    pub fn without_ipv6_program(&self, act: impl FnOnce(&Self)) {
        let loaded = &self.tether.loaded;
        let programs = loaded.map_fd(PROGRAMS).expect("the array of programs");
        remove(programs, IPV6_INDEX).expect("taking the program out of its place");
        act(self);
        loaded.connect().expect("putting the program back");
    }

    /// Sends a packet with no resets saved up, until one such falls into the same step of the coarse clock, which brings more.
    ///
    /// # Panics
    /// If the clock outruns every try.
    pub fn send_without_resets(&self, packet: &Packet) -> Run {
        self.send_until(Reason::ResetLimited, packet, || self.save_resets(0))
    }

    /// The same with no answers by ICMP saved up.
    ///
    /// # Panics
    /// If the clock outruns every try.
    pub fn send_without_answers(&self, packet: &Packet) -> Run {
        self.send_until(Reason::AnswerLimited, packet, || self.save_answers(0))
    }

    fn send_until(&self, limited: Reason, packet: &Packet, spend: impl Fn()) -> Run {
        (0..1_000)
            .map(|_| {
                spend();
                self.send(packet)
            })
            .find(|run| run.reason() == limited)
            .expect("no try within one step of the coarse clock")
    }

    fn observe(
        &self,
        frame: &[u8],
        counted: u32,
        run: impl FnOnce(&Tether) -> super::kernel::Outcome,
    ) -> Run {
        let before = self.counters();
        let outcome = run(&self.tether);
        let change = Change::between(&before, &self.counters(), self.maps.capacity.counters());
        let mut capture = self.capture.borrow_mut();
        capture.note(frame);
        capture.note(&outcome.output);
        Run {
            input: frame.to_vec(),
            counted,
            outcome,
            change,
        }
    }

    fn counters(&self) -> Vec<Counter> {
        let layout = self.maps.capacity.counters();
        (0..layout.per_cpu)
            .map(|offset| self.maps.counter(offset))
            .collect()
    }

    /// Packets counted for a reason so far.
    pub fn count_of(&self, reason: Reason) -> u64 {
        let layout = self.maps.capacity.counters();
        self.maps.counter(layout.reason(reason)).packets
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        HAS_WORLD.set(false);
        if std::thread::panicking() {
            self.capture.borrow().report();
        }
    }
}

/// The present tick, whatever is left of it.
pub fn tick() -> Tick {
    maps::now()
}
