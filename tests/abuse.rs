//! Hostile clients against the built binary: each gets the documented answer, the
//! server's memory stays bounded, another client is served, and the log verifies.
//!
//! No clock decides: timeouts are configured short, and a test waits for what must come.

mod support;

#[path = "abuse/drain.rs"]
mod drain;
#[path = "abuse/fair.rs"]
mod fair;
#[path = "abuse/harness.rs"]
mod harness;
#[path = "abuse/http1.rs"]
mod http1;
#[path = "abuse/http2.rs"]
mod http2;
#[path = "abuse/large.rs"]
mod large;
#[path = "abuse/slow.rs"]
mod slow;
