//! TLS, identities and policy of the built binary, and what hostile clients try against them.

#[path = "support/mod.rs"]
mod support;

#[path = "security/tokens.rs"]
mod tokens;
