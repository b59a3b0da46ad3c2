//! Hooks that listen to some changes, answer as a test says, and remember what they were asked.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use gantry_model::{AdmissionRequest, Admitted, Change, Denial, DenialCode, Refusal, Repository};
use gantry_registry::Admission;

type Answer = dyn Fn(&AdmissionRequest) -> Result<Admitted, Refusal> + Send + Sync;

/// Hooks that listen to some changes, answer as a test says, and remember what they were asked.
pub(crate) struct Hooks {
    changes: Vec<Change>,
    answer: Box<Answer>,
    seen: Mutex<Vec<AdmissionRequest>>,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Hooks")
    }
}

impl Hooks {
    pub(crate) fn none() -> Self {
        Self::on(&[], |request| panic!("asked about {:?}", request.change))
    }

    pub(crate) fn on(
        changes: &[Change],
        answer: impl Fn(&AdmissionRequest) -> Result<Admitted, Refusal> + Send + Sync + 'static,
    ) -> Self {
        Self {
            changes: changes.to_vec(),
            answer: Box::new(answer),
            seen: Mutex::default(),
        }
    }

    /// Accepts everything, and remembers it.
    pub(crate) fn recording() -> Arc<Self> {
        Arc::new(Self::on(&Change::ALL, |_request| Ok(Admitted::default())))
    }

    /// Refuses to point an existing tag elsewhere and to delete a tag.
    pub(crate) fn immutable_tags() -> Arc<Self> {
        let changes = [Change::CreateTag, Change::MoveTag, Change::DeleteTag];
        Arc::new(Self::on(&changes, |request| {
            let previous = request.previous.as_ref().map(|state| &state.digest);
            match request.change {
                Change::DeleteTag => Err(denied("immutable")),
                _ if previous != request.target.as_ref().map(|target| &target.digest)
                    && previous.is_some() =>
                {
                    Err(denied("immutable"))
                }
                _ => Ok(Admitted::default()),
            }
        }))
    }

    /// What was asked since the last call.
    pub(crate) fn take_seen(&self) -> Vec<AdmissionRequest> {
        std::mem::take(&mut self.seen.lock().expect("no panic"))
    }
}

pub(crate) fn denied(code: &str) -> Refusal {
    let denial = Denial::new(DenialCode::Denied, code, "a hook refuses");
    Refusal::Denied(Box::new(denial))
}

#[async_trait]
impl Admission for Hooks {
    fn asks(&self, _repository: &Repository, change: Change) -> bool {
        self.changes.contains(&change)
    }

    async fn admit(&self, request: AdmissionRequest) -> Result<Admitted, Refusal> {
        self.seen.lock().expect("no panic").push(request.clone());
        (self.answer)(&request)
    }
}
