//! What an instance holds, in rows: services, backends, flows. Read from the maps and the status when it is asked for; changes nothing.

mod flows;
mod names;
mod page;
mod query;
mod rows;

pub use self::{
    flows::{FlowEnd, FlowLine, FlowRow, FlowState, list},
    names::{Ids, Names},
    query::{BadQuery, FlowQuery, MOST_SORTED, Prefix, Selection, Sort, States},
    rows::{BackendRow, BackendsByServing, ServiceRow, Traffic, backends, services},
};

#[cfg(test)]
pub(crate) mod tests;
