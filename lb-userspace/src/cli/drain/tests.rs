use std::net::{IpAddr, Ipv4Addr};

use super::*;

fn name() -> BackendName {
    BackendName {
        service: "chat".into(),
        backend: "b1".into(),
    }
}

fn left(active: u64, idle: u64) -> Left {
    Left {
        active,
        idle,
        silent_s: 61,
        oldest_s: 7_200,
    }
}

fn backend(leaving: bool, left: Left) -> BackendLeft {
    BackendLeft {
        service: "chat".into(),
        backend: "b1".into(),
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: 80,
        leaving,
        left,
    }
}

/// What looks one second apart come to, up to the first error.
struct Looks {
    watch: Watch,
    begin: Instant,
    seconds: u64,
}

impl Looks {
    fn new(only_active: bool) -> Self {
        let begin = Instant::now();
        Self {
            watch: Watch::new(only_active, begin),
            begin,
            seconds: 0,
        }
    }

    fn look(&mut self, looked: Result<Vec<BackendLeft>, Error>) -> Result<Seen, String> {
        let now = self.begin + Duration::from_secs(self.seconds);
        self.seconds += 1;
        self.watch
            .look(looked, now)
            .map_err(|error| error.to_string())
    }

    fn left(&mut self, active: u64, idle: u64) -> Seen {
        self.look(Ok(vec![backend(true, left(active, idle))]))
            .unwrap()
    }
}

fn starting() -> Result<Vec<BackendLeft>, Error> {
    Err(Error::Later("the daemon has only just started".into()))
}

#[test]
fn it_is_over_when_two_looks_in_a_row_find_nothing() {
    let mut looks = Looks::new(false);
    for (active, idle) in [(3, 1), (0, 1), (0, 0), (0, 1), (1, 0), (0, 0)] {
        let left = left(active, idle);
        assert_eq!(looks.left(active, idle), Seen::Left(left));
    }
    assert_eq!(looks.left(0, 0), Seen::Done(left(0, 0)));
}

#[test]
fn who_does_not_wait_for_the_idle_is_told_how_many_stay() {
    let mut looks = Looks::new(true);
    assert_eq!(looks.left(1, 7), Seen::Left(left(1, 7)));
    assert_eq!(looks.left(0, 7), Seen::Left(left(0, 7)));
    assert_eq!(looks.left(0, 7), Seen::Done(left(0, 7)));
}

#[test]
fn of_several_backends_all_are_waited_for() {
    let mut looks = Looks::new(false);
    let of = |one, other| Ok(vec![backend(true, one), backend(true, other)]);
    let seen = looks.look(of(left(0, 0), left(2, 1))).unwrap();
    assert_eq!(seen, Seen::Left(left(2, 1)));
    looks.look(of(left(0, 0), left(0, 0))).unwrap();
    let seen = looks.look(of(left(0, 0), left(0, 0))).unwrap();
    assert_eq!(seen, Seen::Done(left(0, 0)));
}

#[test]
fn a_backend_that_was_removed_and_forgotten_has_no_flows() {
    let mut looks = Looks::new(false);
    looks.left(0, 1);
    assert_eq!(looks.look(Ok(vec![])), Ok(Seen::Left(Left::default())));
    assert_eq!(looks.look(Ok(vec![])), Ok(Seen::Done(Left::default())));
}

#[test]
fn a_drain_has_ten_seconds_to_begin_and_its_end_is_an_error() {
    let active = || Ok(vec![backend(false, left(5, 0))]);
    let mut looks = Looks::new(false);
    for _ in 0..10 {
        assert_eq!(looks.look(active()), Ok(Seen::Nothing));
    }
    assert_eq!(
        looks.look(active()),
        Err("chat/b1 still takes new flows; see the daemon's log".into())
    );
    let mut looks = Looks::new(false);
    assert_eq!(looks.look(active()), Ok(Seen::Nothing));
    looks.left(5, 0);
    assert_eq!(
        looks.look(active()),
        Err("the drain of chat/b1 was ended meanwhile".into())
    );
}

#[test]
fn a_daemon_may_be_gone_for_a_minute_and_what_was_seen_before_does_not_count() {
    let mut looks = Looks::new(false);
    looks.left(0, 0);
    assert_eq!(looks.look(starting()), Ok(Seen::Nothing));
    assert_eq!(looks.left(0, 0), Seen::Left(left(0, 0)));
    for _ in 0..60 {
        assert_eq!(looks.look(starting()), Ok(Seen::Nothing));
    }
    assert_eq!(
        looks.look(starting()),
        Err("the daemon has only just started".into())
    );
    let refused = Err(Error::Refused("no".into()));
    assert_eq!(Looks::new(false).look(refused), Err("no".into()));
}

#[test]
fn what_is_left_is_said_in_a_line() {
    assert_eq!(
        line(Some(&name()), &left(24, 3)),
        "chat/b1: 24 active and 3 idle flows left; the oldest is 2 h 0 min old, the most silent says nothing since 1 min 1 s"
    );
    assert_eq!(line(None, &left(0, 0)), "all backends: no flow left");
}
