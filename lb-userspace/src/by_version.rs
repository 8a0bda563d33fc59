//! What there is one of for each version of IP.

use std::ops::{Index, IndexMut};

use lb_common::net::IpVersion;
use serde::{Deserialize, Serialize};

/// One for IPv4, one for IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ByVersion<T> {
    /// That of IPv4.
    pub v4: T,
    /// That of IPv6.
    pub v6: T,
}

impl<T> ByVersion<T> {
    /// Both as `make` makes them.
    pub fn of(mut make: impl FnMut(IpVersion) -> T) -> Self {
        Self {
            v4: make(IpVersion::V4),
            v6: make(IpVersion::V6),
        }
    }

    /// Both, with their versions.
    pub fn each(&self) -> [(IpVersion, &T); 2] {
        [(IpVersion::V4, &self.v4), (IpVersion::V6, &self.v6)]
    }
}

impl<T> Index<IpVersion> for ByVersion<T> {
    type Output = T;

    fn index(&self, version: IpVersion) -> &T {
        match version {
            IpVersion::V4 => &self.v4,
            IpVersion::V6 => &self.v6,
        }
    }
}

impl<T> IndexMut<IpVersion> for ByVersion<T> {
    fn index_mut(&mut self, version: IpVersion) -> &mut T {
        match version {
            IpVersion::V4 => &mut self.v4,
            IpVersion::V6 => &mut self.v6,
        }
    }
}
