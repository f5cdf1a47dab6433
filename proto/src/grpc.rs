//! The status codes of gRPC, as telemetry names them (OpenTelemetry semantic
//! conventions, "gRPC").

/// By number ("Status codes and their use in gRPC").
const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The name of a status code; what is none is `UNKNOWN`.
pub fn status_name(code: i32) -> &'static str {
    usize::try_from(code).ok().and_then(|code| NAMES.get(code)).unwrap_or(&"UNKNOWN")
}

/// Whether the span of a server is an error at this code: what only the server can mend.
pub fn is_server_error(code: i32) -> bool {
    let errors = ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];
    errors.contains(&status_name(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_number() {
        let named = [0, 3, 8, 14, 16, 17, -1].map(status_name);
        let wanted =
            ["OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNAUTHENTICATED", "UNKNOWN", "UNKNOWN"];
        assert_eq!(named, wanted);
        assert!(is_server_error(14) && !is_server_error(3) && !is_server_error(0));
    }
}
