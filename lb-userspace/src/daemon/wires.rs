//! The channels of the reconciler.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::{mpsc, watch};

use super::{QUEUE, scouts::Scouts};
use crate::{
    flows::Census,
    neighbour::replies::Hindrances,
    reconcile::{Command, Inputs, Outputs},
    status::{Attachments, Status},
};

/// Both ends of all of them.
pub(super) struct Wires {
    /// What the reconciler listens to.
    pub(super) inputs: Inputs,
    /// What it says.
    pub(super) outputs: Outputs,
    /// Who find out for it what it wants to know.
    pub(super) scouts: Scouts,
    /// For the sweep of the flow tables.
    pub(super) census: watch::Sender<Arc<Census>>,
    /// For who sees to it that the program stays attached.
    pub(super) attachments: watch::Sender<Attachments>,
}

impl Wires {
    /// `status` is what is told before the reconciler's first; `commands` are what people ask for.
    pub(super) fn new(
        status: Status,
        commands: mpsc::Receiver<Command>,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        let (health_reports, health) = mpsc::channel(QUEUE);
        let (hop_reports, next_hops) = mpsc::channel(QUEUE);
        let (answer_reports, answers) = mpsc::channel(QUEUE);
        let (targets, watched_targets) = watch::channel(vec![]);
        let (addresses, watched_addresses) = watch::channel(BTreeSet::new());
        let (questions, watched_questions) = watch::channel(BTreeMap::new());
        let (vips, watched_vips) = watch::channel(BTreeSet::new());
        let (own_vips, watched_own_vips) = watch::channel(None);
        let (hindrances, watched_hindrances) = watch::channel(Hindrances::default());
        let (unguarded, watched_unguarded) = watch::channel(None);
        let (census, watched_census) = watch::channel(Arc::new(Census::default()));
        let (attachments, watched_attachments) = watch::channel(Attachments::default());
        let (closed_egress, watched_closed_egress) = watch::channel(vec![]);
        let (status, watched_status) = watch::channel(Arc::new(status));
        Self {
            inputs: Inputs {
                commands,
                health,
                next_hops,
                answers,
                own_vips: watched_own_vips,
                hindrances: watched_hindrances,
                unguarded: watched_unguarded,
                census: watched_census,
                attachments: watched_attachments,
                closed_egress: watched_closed_egress,
                shutdown,
            },
            outputs: Outputs {
                targets,
                addresses,
                questions,
                vips,
                status,
            },
            scouts: Scouts {
                targets: watched_targets,
                addresses: watched_addresses,
                questions: watched_questions,
                vips: watched_vips,
                status: watched_status,
                health: health_reports,
                next_hops: hop_reports,
                closed_egress,
                answers: answer_reports,
                own_vips,
                hindrances,
                unguarded,
            },
            census,
            attachments,
        }
    }
}
