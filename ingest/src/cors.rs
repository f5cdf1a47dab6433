//! Pages that may send: browser exporters on other origins (Fetch standard, "CORS
//! protocol"). Without a setting there are none.
//!
//! A browser names the page's origin in every POST, exporters outside of browsers name
//! none. So a request that names an origin which is not allowed is refused, also where the
//! browser takes the page for one of ours (DNS rebinding): nobody's page writes evidence.

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};

use crate::http::Body;

/// How long a browser may remember a preflight's answer; more than two hours no browser does.
const MAX_AGE_SECONDS: u64 = 7200;

/// The origins whose pages may send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    any: bool,
    origins: Vec<String>,
}

impl Cors {
    /// Reads origins as a browser writes them (`https://app.example.com`), or `*` for all.
    pub fn new(origins: &[String]) -> Result<Self, String> {
        let mut cors = Self::default();
        for origin in origins {
            match origin.as_str() {
                "*" => cors.any = true,
                _ => cors.origins.push(read_origin(origin)?),
            }
        }
        Ok(cors)
    }

    /// Whether a request may be served: it comes from no page, or from one that may send.
    pub(crate) fn allows(&self, headers: &HeaderMap) -> bool {
        let mut origins = headers.get_all(ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (None, _) => true,
            (Some(origin), None) => {
                self.any || origin.to_str().is_ok_and(|origin| self.origins.iter().any(|allowed| allowed == origin))
            }
            (Some(_), Some(_)) => false,
        }
    }

    /// The answer to a browser that asks first, for an origin that may send; [`Self::mark`] says so.
    pub(crate) fn preflight<B>(&self, request: &Request<B>) -> Option<Response<Body>> {
        let headers = request.headers();
        let asks = request.method() == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if !asks || !headers.contains_key(ORIGIN) || !self.allows(headers) {
            return None;
        }
        let mut response = Response::new(Full::new(Bytes::new()).boxed_unsync());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let answer = response.headers_mut();
        answer.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
        // Exporters send headers of their user's choice (keys, tenants): a page that may send may send any.
        let asked = headers.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
        let asked = asked.unwrap_or(HeaderValue::from_static("content-type, content-encoding"));
        answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked);
        answer.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE_SECONDS.into());
        answer.append(VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
        Some(response)
    }

    /// Lets the page of an allowed origin read an answer. Credentials only for origins that
    /// were named, never for all of them.
    pub(crate) fn mark(&self, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
        if !self.any && self.origins.is_empty() {
            return;
        }
        answer.append(VARY, HeaderValue::from_static("Origin"));
        let Some(origin) = origin else { return };
        let named = origin.to_str().is_ok_and(|origin| self.origins.iter().any(|allowed| allowed == origin));
        if named {
            answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        } else if self.any {
            answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        } else {
            return;
        }
        let readable = HeaderValue::from_static("retry-after, custody-receipt, custody-receipt-error");
        answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, readable);
    }
}

/// An origin as browsers serialise it: scheme and host in lower case, no default port, nothing behind.
fn read_origin(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is not an origin; write it as the browser does, such as https://app.example.com");
    let lower = text.to_ascii_lowercase();
    let (scheme, host) = lower.split_once("://").ok_or_else(wrong)?;
    let scheme_fits = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let host_fits = !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@,*\"\\".contains(&b));
    if !scheme_fits || !host_fits {
        return Err(wrong());
    }
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    let host = host.strip_suffix(port).unwrap_or(host);
    Ok(format!("{scheme}://{host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_read_as_browsers_write_them() {
        let read = |text: &str| read_origin(text).ok();
        assert_eq!(read("https://App.example.com:443").as_deref(), Some("https://app.example.com"));
        assert_eq!(read("http://localhost:8080").as_deref(), Some("http://localhost:8080"));
        assert_eq!(read("https://[::1]:8443").as_deref(), Some("https://[::1]:8443"));
        assert_eq!(read("chrome-extension://abcdef").as_deref(), Some("chrome-extension://abcdef"));
        for wrong in ["", "null", "app.example.com", "https://", "https://a.example/", "https://*.example.com", "//a"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_origin_that_is_not_named_is_not_allowed() {
        let cors = Cors::new(&["https://app.example.com".into()]).unwrap();
        let from = |origins: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for origin in origins {
                headers.append(ORIGIN, HeaderValue::from_static(origin));
            }
            headers
        };
        assert!(cors.allows(&from(&[])));
        assert!(cors.allows(&from(&["https://app.example.com"])));
        for other in ["https://app.example.com.evil.example", "http://app.example.com", "null", ""] {
            assert!(!cors.allows(&from(&[other])), "{other}");
        }
        assert!(!cors.allows(&from(&["https://app.example.com", "https://evil.example"])));
        assert!(!Cors::default().allows(&from(&["https://app.example.com"])));
        assert!(Cors::new(&["*".into()]).unwrap().allows(&from(&["null"])));
    }
}
