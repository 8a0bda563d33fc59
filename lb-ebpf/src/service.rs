//! Which service a packet is for: exact address and port.

use lb_common::{
    net::Address,
    service::Service,
    verdict::Reason,
    vip::{VipBucket, VipEntry, WAYS, homes},
};

use crate::{
    family::{V4, V6},
    maps,
};

/// The directory of VIPs, in one version of IP.
pub(crate) trait Directory {
    /// An address.
    type Address: Copy;

    /// The service at an address and port; [`Reason::NotService`] if there is none, [`Reason::ServiceMissing`] if it is none that the
    /// services map has room for: it has no counter either, and another's would be taken for it.
    fn service(address: Self::Address, port: u16) -> Result<u16, Reason>;

    /// Whether an address is a VIP and none of the host's own addresses.
    fn is_only_vip(address: Self::Address) -> bool;
}

impl Directory for V4 {
    type Address = u32;

    #[inline(always)]
    fn service(address: u32, port: u16) -> Result<u16, Reason> {
        // Port 0 is the directory's mark of the VIP itself.
        if port == 0 {
            return Err(Reason::NotService);
        }
        known(find4(VipEntry::key(address, port)).ok_or(Reason::NotService)?)
    }

    #[inline(always)]
    fn is_only_vip(address: u32) -> bool {
        // 0.0.0.0 is nobody's VIP, and with port 0 its key is that of a place which is empty.
        address != 0
            && find4(VipEntry::key(address, 0))
                .is_some_and(|flags| flags & VipEntry::HOST_OWNED == 0)
    }
}

impl Directory for V6 {
    type Address = [u64; 2];

    #[inline(always)]
    fn service(address: [u64; 2], port: u16) -> Result<u16, Reason> {
        if port == 0 {
            return Err(Reason::NotService);
        }
        let id = known(find6(VipEntry::key6(address, port)).ok_or(Reason::NotService)?)?;
        // What was compared is a fingerprint.
        match maps::service(id) {
            Some(service) if is_at(service, address) && port_of(service) == port => Ok(id),
            _ => Err(Reason::NotService),
        }
    }

    #[inline(always)]
    fn is_only_vip(address: [u64; 2]) -> bool {
        find6(VipEntry::key6(address, 0))
            .and_then(maps::service)
            .is_some_and(|service| is_at(service, address))
    }
}

/// A service that the services map has room for.
#[inline(always)]
fn known(id: u16) -> Result<u16, Reason> {
    if (id as u32) < maps::services() {
        Ok(id)
    } else {
        Err(Reason::ServiceMissing)
    }
}

#[inline(always)]
fn is_at(service: *const Service, address: [u64; 2]) -> bool {
    // SAFETY: an entry of the map. A VIP does not change while the directory names its service.
    let vip = unsafe {
        core::ptr::addr_of!((*service).vip)
            .cast::<[u64; 2]>()
            .read()
    };
    const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 8);
    vip[0] == address[0] && vip[1] == address[1]
}

#[inline(always)]
fn port_of(service: *const Service) -> u16 {
    // SAFETY: as above.
    unsafe { core::ptr::addr_of!((*service).port).read() }
}

#[inline(always)]
fn find4(key: u64) -> Option<u16> {
    find(key, maps::vip_buckets(), maps::vips4)
}

#[inline(always)]
fn find6(key: u64) -> Option<u16> {
    find(key, maps::vip_buckets(), maps::vips6)
}

/// The id of a key in a directory of so many buckets.
#[inline(always)]
pub(crate) fn find(
    key: u64,
    buckets: u32,
    bucket: impl Fn(u32) -> Option<*const VipBucket>,
) -> Option<u16> {
    // The second home is worked out only if it is needed, which it rarely is for a VIP.
    let first = homes(key, buckets)[0];
    find_in(bucket(first)?, key).or_else(|| {
        let second = homes(key, buckets)[1];
        find_in(bucket(second)?, key)
    })
}

#[inline(always)]
fn find_in(bucket: *const VipBucket, key: u64) -> Option<u16> {
    let mut way = 0;
    while way < WAYS {
        // SAFETY: an entry of the map, and a way that it has. Volatile: the daemon writes it meanwhile.
        let entry = VipEntry(unsafe {
            core::ptr::addr_of!((*bucket).entries)
                .cast::<u64>()
                .add(way)
                .read_volatile()
        });
        if entry.is_for(key) {
            return Some(entry.value());
        }
        way += 1;
    }
    None
}
