//! What modes `nat` and `dnat` and backends on this host have in common: segments that are addressed anew, and what their programs have to know for that.
//!
//! * [`segment`]: addresses, ports and checksums
//! * [`handed`]: what one program has found out, and the next goes on with
//! * [`client`]: the flow that a client has at an endpoint

mod client;
mod handed;
mod segment;

pub(crate) use self::{
    client::{at_endpoint, of_service},
    handed::{
        backend_address, backend_port, end, load, parse, reason_of, steered, vip, without_entry,
    },
    segment::{New, Rewrite, error, error_in_place, packet, packet_in_place, plain},
};
