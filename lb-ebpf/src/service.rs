//! Which service a packet is for: exact address and port.

use lb_common::{
    verdict::Reason,
    vip::{VipBucket, VipEntry, WAYS, homes},
};

use crate::maps;

/// The service at an address and port; [`Reason::NotService`] if there is none, [`Reason::ServiceMissing`] if it is none that the
/// services map has room for: it has no counter either, and another's would be taken for it.
#[inline(always)]
pub(crate) fn look_up(address: u32, port: u16) -> Result<u16, Reason> {
    // Port 0 is the directory's mark of the VIP itself.
    if port == 0 {
        return Err(Reason::NotService);
    }
    let id = find(VipEntry::key(address, port)).ok_or(Reason::NotService)?;
    if (id as u32) < maps::services() {
        Ok(id)
    } else {
        Err(Reason::ServiceMissing)
    }
}

/// What becomes of a fragment that has no ports: dropped if its destination is a VIP and not the host's own address, or it would be
/// forwarded as if it were not for a VIP.
#[inline(always)]
pub(crate) fn of_fragment(address: u32) -> Reason {
    match find(VipEntry::key(address, 0)) {
        Some(flags) if flags & VipEntry::HOST_OWNED == 0 => Reason::Fragment,
        _ => Reason::NotService,
    }
}

#[inline(always)]
fn find(key: u64) -> Option<u16> {
    // The second home is worked out only if it is needed, which it rarely is for a VIP.
    let first = homes(key, maps::vip_buckets())[0];
    find_in(maps::vips4(first)?, key).or_else(|| {
        let second = homes(key, maps::vip_buckets())[1];
        find_in(maps::vips4(second)?, key)
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
