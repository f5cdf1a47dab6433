//! What keeps requests out that are sound in themselves: a disk that is nearly full,
//! and this server's own traces, which must never be traced in turn.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use http::{HeaderMap, HeaderName};
use prost::Message as _;

use crate::Refusal;
use crate::status::Reason;

/// The header that this program's exporter puts on what it sends: its instance id.
pub const OWN: HeaderName = HeaderName::from_static("custody-self");

/// Who may come in.
#[derive(Debug, Default)]
pub struct Gate {
    /// The id that this server's own traces carry, if it exports any.
    instance: Option<String>,
    /// The attribute with that id as it stands in a resource; empty without one.
    attribute: Vec<u8>,
    disk_low: AtomicBool,
}

/// How much of a request is this server's own telemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    None,
    Some,
    All,
}

impl Gate {
    /// A gate for a server whose own traces carry this id.
    pub fn new(instance: Option<String>) -> Self {
        let attribute = instance.as_deref().map(instance_attribute).unwrap_or_default();
        Self { instance, attribute, ..Self::default() }
    }

    /// Shuts the gate while there is too little room on the disk.
    pub fn set_disk_low(&self, low: bool) {
        self.disk_low.store(low, Relaxed);
    }

    /// Looks at a request's head.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.disk_low.load(Relaxed) {
            let why = "the disk of the log is nearly full; try again when there is room";
            return Err(Refusal::unavailable(why, 30).because(Reason::DiskLow));
        }
        match &self.instance {
            Some(own) if headers.get(OWN).is_some_and(|mark| mark == own.as_str()) => Err(Refusal::Own),
            _ => Ok(()),
        }
    }

    /// Looks at the resources of a request for traces: a collector between takes the header
    /// away, but not the attribute `service.instance.id` of the resource.
    pub(crate) fn own<'a>(&self, resources: impl Iterator<Item = &'a [u8]>) -> Own {
        if self.attribute.is_empty() {
            return Own::None;
        }
        let is_own = |resource: &[u8]| resource.windows(self.attribute.len()).any(|part| part == self.attribute);
        let (mut some, mut all) = (false, true);
        for resource in resources {
            let is_own = is_own(resource);
            some |= is_own;
            all &= is_own;
        }
        match (some, all) {
            (false, _) => Own::None,
            (true, true) => Own::All,
            (true, false) => Own::Some,
        }
    }
}

/// The attribute as every encoder writes it: `KeyValue` with its key, then its text.
fn instance_attribute(id: &str) -> Vec<u8> {
    use custody_proto::otlp::common::{AnyValue, KeyValue, any_value::Value};
    let value = Some(AnyValue { value: Some(Value::StringValue(id.to_owned())) });
    KeyValue { key: "service.instance.id".into(), value, ..Default::default() }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_is_known_by_header_and_by_resource() {
        let gate = Gate::new(Some("0123-id".into()));
        let mut headers = HeaderMap::new();
        assert_eq!(gate.admit(&headers), Ok(()));
        headers.insert(OWN, http::HeaderValue::from_static("another"));
        assert_eq!(gate.admit(&headers), Ok(()));
        assert_eq!(Gate::default().admit(&headers), Ok(()));
        headers.insert(OWN, http::HeaderValue::from_static("0123-id"));
        assert_eq!(gate.admit(&headers), Err(Refusal::Own));
        let ours = [&b"xx"[..], &instance_attribute("0123-id"), b"xx"].concat();
        let (ours, other): (&[u8], &[u8]) = (&ours, b"a text that names 0123-id");
        assert_eq!(gate.own([other].into_iter()), Own::None);
        assert_eq!(gate.own([].into_iter()), Own::None);
        assert_eq!(gate.own([ours, other].into_iter()), Own::Some);
        assert_eq!(gate.own([ours, ours].into_iter()), Own::All);
        assert_eq!(Gate::default().own([ours].into_iter()), Own::None);
    }

    #[test]
    fn a_full_disk_is_no_fault_of_the_request() {
        let gate = Gate::default();
        gate.set_disk_low(true);
        assert!(matches!(gate.admit(&HeaderMap::new()), Err(Refusal::Unavailable { .. })));
        gate.set_disk_low(false);
        assert_eq!(gate.admit(&HeaderMap::new()), Ok(()));
    }
}
