//! What stands in the maps is what is to stand there.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::{
    backend::BackendState,
    net::{Address, IpVersion},
    vip::{VipEntry, WAYS},
};

use super::{Daemon, Machine, PATIENCE, counted, running};

/// A daemon of two services, at an IPv4 and an IPv6 VIP, whose first word has come but for which VIPs are the host's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_vip_that_the_host_has_itself_is_marked_before_anything_is_applied() {
    let machine = Machine::new("own");
    let mut config = machine.config(&[]);
    let mut second = config.services[0].clone();
    second.name = "six".into();
    second.vip = "2001:db8::1".parse().unwrap();
    config.services.push(second);
    let vips: BTreeSet<IpAddr> = config.services.iter().map(|service| service.vip).collect();
    let mut daemon = Daemon::start_knowing(&machine.maps, config, None);
    daemon.vips.wait_for(|asked| *asked == vips).await.unwrap();
    let own = |version| {
        let key = match version {
            IpVersion::V4 => VipEntry::key(0x0a00_0001, 0),
            IpVersion::V6 => {
                let vip = Address::from("2001:db8::1".parse::<IpAddr>().unwrap());
                VipEntry::key6(vip.words(), 0)
            }
        };
        (0..machine.maps.capacity.vip_buckets())
            .flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)))
            .map(|(bucket, way)| machine.maps.vip(version, bucket, way))
            .find(|entry| entry.is_for(key))
            .map(VipEntry::value)
    };
    let both = || [own(IpVersion::V4), own(IpVersion::V6)];
    assert_eq!(both(), [None, None]);
    daemon.own_vips.send_replace(Some(vips));
    daemon
        .until("applied", |status| status.generation.applied > 0)
        .await;
    assert_eq!(both(), [Some(VipEntry::HOST_OWNED), None]);
    daemon.own_vips.send_replace(Some(BTreeSet::new()));
    let deadline = Instant::now() + PATIENCE;
    while !matches!(both(), [Some(0), Some(1 | 2)]) {
        assert!(Instant::now() < deadline, "{:?}", both());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    daemon.shutdown.send_replace(true);
    daemon.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_heals_under_steady_change() {
    let machine = Machine::new("drift");
    let daemon = running(&machine).await;
    let healthy = machine.maps.state(1);
    machine.maps.set_state(1, BackendState::default());
    // Something happens all the time; that must not put the comparison off.
    let begun = std::time::Instant::now();
    let mut scans = 1;
    while machine.maps.state(1) != healthy {
        assert!(begun.elapsed() < PATIENCE, "never mended");
        let before = daemon.status.borrow().clone();
        daemon.census.send_replace(Arc::new(counted(scans, &[])));
        scans += 1;
        daemon
            .until("the census is heard", |status| {
                !Arc::ptr_eq(status, &before)
            })
            .await;
    }
    daemon.stop().await;
}
