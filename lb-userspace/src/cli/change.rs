//! Changing backends at runtime.

use std::net::IpAddr;

use clap::Args;

use super::{Daemon, Failure, Named, ask};
use crate::{admin::PutBackend, config, model::Admin};

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Weight {
    /// The backend, as SERVICE/BACKEND.
    backend: Named,
    /// Its share of new flows in relation to the others', 0 to 1000; 0 takes none.
    #[arg(value_parser = clap::value_parser!(u16).range(0..=i64::from(config::MAX_WEIGHT)))]
    weight: u16,
    #[command(flatten)]
    daemon: Daemon,
}

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Add {
    /// The backend, as SERVICE/BACKEND. The service is in the file.
    backend: Named,
    /// Its address.
    #[arg(long)]
    address: IpAddr,
    /// Its port; without it the service's.
    #[arg(long)]
    port: Option<u16>,
    /// Its share of new flows in relation to the others', 0 to 1000.
    #[arg(long, default_value_t = config::WEIGHT, value_parser = clap::value_parser!(u16).range(0..=i64::from(config::MAX_WEIGHT)))]
    weight: u16,
    #[command(flatten)]
    daemon: Daemon,
}

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Remove {
    /// The backend, as SERVICE/BACKEND.
    backend: Named,
    #[command(flatten)]
    daemon: Daemon,
}

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Revert {
    /// The backend, as SERVICE/BACKEND.
    backend: Named,
    #[command(flatten)]
    daemon: Daemon,
}

impl Weight {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (name, weight) = (&self.backend.0, self.weight);
        ask(&self.daemon, async |client| {
            client.set_weight(name, weight).await
        })?;
        put_line!("{name} has weight {weight}; what flows there are stay where they are");
        Ok(())
    }
}

impl Add {
    pub(super) fn run(self) -> Result<(), Failure> {
        let backend = PutBackend {
            address: self.address,
            port: self.port,
            weight: self.weight,
            admin: Admin::Active,
        };
        let name = &self.backend.0;
        ask(&self.daemon, async |client| {
            client.put_backend(name, &backend).await
        })?;
        put_line!("{name} is added; it takes new flows when its checks say yes");
        Ok(())
    }
}

impl Remove {
    pub(super) fn run(self) -> Result<(), Failure> {
        let name = &self.backend.0;
        ask(&self.daemon, async |client| {
            client.remove_backend(name).await
        })?;
        put_line!("{name} is removed; `tether status` shows the flows it has");
        Ok(())
    }
}

impl Revert {
    pub(super) fn run(self) -> Result<(), Failure> {
        let name = &self.backend.0;
        ask(&self.daemon, async |client| client.revert(name).await)?;
        put_line!("{name} is what the file says of it");
        Ok(())
    }
}
