//! What a process that serves needs of the system: addresses, signals, files that others wait for.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;

use tokio::net::TcpListener;

use crate::Failure;

/// An address to listen on, as flags have it.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an address is an IP and a port, such as 127.0.0.1:4317 or [::1]:4317".to_owned())
}

/// A witness knows no TLS: only programs of this machine may ask.
pub(crate) fn only_loopback(flag: &str, address: SocketAddr) -> Result<(), Failure> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    Err(Failure::unable(format!(
        "{flag} {address} is not a loopback address, and nothing else is listened on without TLS: \
         use 127.0.0.1, and a proxy that ends TLS in front of it"
    )))
}

/// Resolves on SIGTERM or Ctrl-C.
pub(crate) fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::unable)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::unable)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: finishing what was accepted");
    })
}

/// Binds an address; the error names the flag.
pub(crate) async fn listen(what: &str, flag: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|e| {
        Failure::unable(format!("{what} cannot listen on {address}: {e}; choose another address with {flag}"))
    })
}

/// Writes a small file that others wait for: it is there whole, or not.
pub(crate) fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    let new = path.with_extension("new");
    let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path));
    written.map_err(|e| Failure::unable(format!("{} cannot be written: {e}", path.display())))
}
