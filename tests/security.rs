//! TLS, identities and policy of the built binary, and what hostile clients try against them.

#[path = "security/certificates.rs"]
mod certificates;
#[path = "security/clients.rs"]
mod clients;
#[path = "security/fetch.rs"]
mod fetch;
#[path = "security/harness.rs"]
mod harness;
#[path = "security/headers.rs"]
mod headers;
#[path = "security/packaging.rs"]
mod packaging;
#[path = "security/peers.rs"]
mod peers;
#[path = "security/reload.rs"]
mod reload;
#[path = "security/shared.rs"]
mod shared;
#[path = "security/start.rs"]
mod start;
#[path = "support/mod.rs"]
mod support;
#[path = "security/tokens.rs"]
mod tokens;
#[path = "security/watched.rs"]
mod watched;
