//! Object stores that speak S3, as a place for exported events: AWS, MinIO, Ceph, R2 and the like.
//!
//! Requests are signed by rusty-s3 as URLs that hold for some minutes, and sent by ureq. Such a URL is a
//! credential: none is in a message or a log line, nor is what signs it. Objects are put with
//! `If-None-Match: *`, so that nobody's object is ever written over, and with their SHA-256, which the
//! store compares. What may pass (no connection, 5xx, 429) is tried again some times; whether a request
//! whose answer was lost was carried out is seen by reading what is there.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use custody_query::serve::events::{Put, Shelf};
use custody_query::{Error, ErrorKind};
use rusty_s3::actions::{GetObject, PutObject};
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};

/// How long a signed URL holds.
const URL_LIFE: Duration = Duration::from_secs(300);

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(120);

/// How often a request is sent, and how long it is waited before the second time; then twice as long.
const TRIES: u32 = 6;
const PAUSE: Duration = Duration::from_millis(250);

/// The largest object that is read.
const BYTES_MAX: u64 = 1 << 30;

/// A folder of a bucket.
pub struct S3 {
    bucket: Bucket,
    /// Before each name, with a slash behind; empty for the bucket itself.
    prefix: String,
    agent: ureq::Agent,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket.name(), self.prefix)
    }
}

/// SHA-256, by the library that signs.
pub fn sha256(bytes: &[u8]) -> impl AsRef<[u8]> + use<> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
}

/// An environment variable that is set to something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

impl S3 {
    /// The place that `s3://bucket/prefix` names, at AWS or at an endpoint.
    ///
    /// # Errors
    ///
    /// What to mend, in one line.
    pub fn open(place: &str, endpoint: Option<&str>) -> Result<Self, String> {
        let (name, prefix) = parse(place)?;
        let endpoint = endpoint.map(str::to_owned);
        let endpoint = endpoint.or_else(|| variable("AWS_ENDPOINT_URL_S3")).or_else(|| variable("AWS_ENDPOINT_URL"));
        let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
        let (endpoint, style, region) = match (endpoint, region) {
            // Other stores have one region, which most of them call so.
            (Some(endpoint), region) => (endpoint, UrlStyle::Path, region.unwrap_or_else(|| "us-east-1".into())),
            (None, None) => {
                return Err(
                    "set AWS_REGION to the region of the bucket, or name another store with --s3-endpoint".into()
                );
            }
            (None, Some(region)) => {
                let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
                // Certificates are for one label before the domain.
                let style = if name.contains('.') { UrlStyle::Path } else { UrlStyle::VirtualHost };
                (format!("https://s3.{region}.{domain}"), style, region)
            }
        };
        check_endpoint(&endpoint)?;
        let url = endpoint.parse().map_err(|_| format!("--s3-endpoint {endpoint}: it is not a URL"))?;
        let bucket = Bucket::new(url, style, name, region).map_err(|e| format!("{place}: {e}"))?;
        let mut tls = crate::credentials::tls();
        if let Some(path) = variable("AWS_CA_BUNDLE") {
            tls = tls.root_certs(
                crate::credentials::roots(&PathBuf::from(path)).map_err(|e| format!("AWS_CA_BUNDLE: {e}"))?,
            );
        }
        // A redirection would be signed for another address.
        let config = ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0);
        let config = config.max_redirects_will_error(false).timeout_global(Some(TIMEOUT)).tls_config(tls.build());
        let shelf = Self { bucket, prefix, agent: config.build().new_agent() };
        credentials()?;
        Ok(shelf)
    }

    /// The key of a name.
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Sends a request, again if it may go well another time.
    fn send(&self, what: &str, request: impl Fn(&Credentials) -> Result<Answer, ureq::Error>) -> Result<Answer, Error> {
        let told = |why: &str| Error::new(ErrorKind::Unavailable, format!("{self:?}: {what}: {why}"));
        let mut pause = PAUSE;
        let mut tried = 1;
        loop {
            let why = match request(&credentials().map_err(|e| told(&e))?) {
                Ok(answer) if !answer.may_pass() => return Ok(answer),
                Ok(answer) => answer.told(),
                Err(error) => plain(&error),
            };
            if tried == TRIES {
                return Err(told(&format!("{why} ({TRIES} times)")));
            }
            tracing::debug!(what, why, tried, "a request to the object store is sent again");
            std::thread::sleep(pause);
            (tried, pause) = (tried + 1, pause * 2);
        }
    }

    /// What is under a key.
    fn get(&self, what: &str, key: &str, query: &[(&'static str, String)]) -> Result<Answer, Error> {
        self.send(what, |credentials| {
            let mut action = GetObject::new(&self.bucket, Some(credentials), key);
            query.iter().for_each(|(name, value)| action.query_mut().insert(*name, value.clone()));
            Answer::read(self.agent.get(action.sign(URL_LIFE).as_str()).call()?)
        })
    }

    /// Whether what is under a name is this; `None` if nothing is.
    fn compared(&self, name: &str, bytes: &[u8]) -> Result<Option<Put>, Error> {
        let there = self.read(name)?;
        Ok(there.map(|there| if there == bytes { Put::There } else { Put::Other }))
    }

    fn refused(&self, what: &str, answer: &Answer) -> Error {
        Error::new(ErrorKind::Unavailable, format!("{self:?}: {what}: {}", answer.told()))
    }
}

impl Shelf for S3 {
    fn names(&self, folder: &str) -> Result<Vec<String>, Error> {
        let (what, prefix) = (format!("the names in {folder}"), self.key(folder));
        let mut names = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let mut query =
                vec![("list-type", "2".to_owned()), ("encoding-type", "url".into()), ("prefix", prefix.clone())];
            query.extend(next.take().map(|token| ("continuation-token", token)));
            // The bucket itself, which has no key.
            let answer = self.get(&what, "", &query)?;
            if answer.status != 200 {
                return Err(self.refused(&what, &answer));
            }
            let list = String::from_utf8_lossy(&answer.body);
            let encoded = element(&list, "EncodingType").is_some_and(|kind| kind == "url");
            for key in elements(&list, "Key") {
                let key = if encoded { decoded(&key) } else { key };
                names.extend(key.strip_prefix(&self.prefix).map(str::to_owned));
            }
            if element(&list, "IsTruncated").as_deref() != Some("true") {
                names.sort_unstable();
                return Ok(names);
            }
            next = element(&list, "NextContinuationToken");
            if next.is_none() {
                return Err(Error::new(ErrorKind::Unavailable, format!("{self:?}: {what}: the list breaks off")));
            }
        }
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let answer = self.get(name, &self.key(name), &[])?;
        match answer.status {
            200 => Ok(Some(answer.body)),
            // Not a bucket that is missing, which is somebody's mistake.
            404 if answer.code.as_deref() != Some("NoSuchBucket") => Ok(None),
            _ => Err(self.refused(name, &answer)),
        }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<Put, Error> {
        // Some stores pass over the condition: they are asked before, too.
        if let Some(there) = self.compared(name, bytes)? {
            return Ok(there);
        }
        let (key, sum) = (self.key(name), STANDARD.encode(sha256(bytes)));
        let headers = [("if-none-match", "*"), ("x-amz-checksum-sha256", sum.as_str())];
        let answer = self.send(name, |credentials| {
            let mut action = PutObject::new(&self.bucket, Some(credentials), &key);
            headers.iter().for_each(|(name, value)| action.headers_mut().insert(*name, *value));
            let mut request = self.agent.put(action.sign(URL_LIFE).as_str());
            for (name, value) in headers {
                request = request.header(name, value);
            }
            Answer::read(request.send(bytes)?)
        })?;
        match answer.status {
            200 | 201 => Ok(Put::There),
            // Perhaps ours, of which the answer was lost.
            412 => match self.compared(name, bytes)? {
                Some(put) => Ok(put),
                None => Err(self.refused(name, &answer)),
            },
            _ => Err(self.refused(name, &answer)),
        }
    }
}

/// An answer of the store.
struct Answer {
    status: u16,
    /// What an error is called.
    code: Option<String>,
    body: Vec<u8>,
}

impl Answer {
    fn read(answer: ureq::http::Response<ureq::Body>) -> Result<Self, ureq::Error> {
        let status = answer.status().as_u16();
        let body = answer.into_body().into_with_config().limit(BYTES_MAX).read_to_vec()?;
        let code = (status >= 300).then(|| element(&String::from_utf8_lossy(&body), "Code")).flatten();
        Ok(Self { status, code, body })
    }

    /// Whether it may be another one next time. (409: two put the same name at once.)
    const fn may_pass(&self) -> bool {
        matches!(self.status, 408 | 409 | 425 | 429 | 500 | 502 | 503 | 504)
    }

    fn told(&self) -> String {
        let mend = match self.status {
            301 | 307 => "; the bucket is in another region: set AWS_REGION",
            403 => "; may these credentials list, read and put there? is the clock right?",
            501 => "; this store knows no If-None-Match, so nothing is put there",
            _ => "",
        };
        // What a store calls an error is one word; anything else is not repeated.
        let is_word = |code: &&String| code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric());
        let code = self.code.as_ref().filter(is_word).map(|code| format!(" {code}")).unwrap_or_default();
        format!("status {}{code}{mend}", self.status)
    }
}

/// Why there is no answer, without the URL.
fn plain(error: &ureq::Error) -> String {
    let text = error.to_string();
    if text.contains("X-Amz-") { "the request cannot be sent".into() } else { text }
}

/// Bucket and prefix of a place.
fn parse(place: &str) -> Result<(String, String), String> {
    let rest = place.strip_prefix("s3://").ok_or_else(|| format!("{place}: name it as s3://bucket/prefix"))?;
    let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let in_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
    if !(3..=63).contains(&name.len()) || !name.chars().all(in_name) || name.contains("..") {
        return Err(format!("{place}: a bucket has 3 to 63 small letters, digits, dots and dashes"));
    }
    let prefix = prefix.trim_end_matches('/');
    let sound = |segment: &str| !matches!(segment, "" | "." | "..") && !segment.contains(char::is_control);
    match prefix {
        "" => Ok((name.to_owned(), String::new())),
        prefix if prefix.split('/').all(sound) && prefix.len() <= 512 => Ok((name.to_owned(), format!("{prefix}/"))),
        _ => Err(format!("{place}: the prefix has a part that is empty, . or ..")),
    }
}

/// Events go over no network in the clear.
fn check_endpoint(endpoint: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("--s3-endpoint {endpoint}: {why}"));
    let Ok(uri) = endpoint.parse::<ureq::http::Uri>() else { return wrong("it is not a URL") };
    let host = uri.host().unwrap_or_default();
    let inner = host.trim_start_matches('[').trim_end_matches(']');
    let is_local = host == "localhost" || inner.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    match uri.scheme_str() {
        _ if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) => {
            wrong("credentials are in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, not in a URL")
        }
        Some("https") if !host.is_empty() => Ok(()),
        Some("http") if is_local => Ok(()),
        Some("http") => wrong("events go to another machine by https only"),
        _ => wrong("it is not an https URL"),
    }
}

/// With what requests are signed: from the environment, or from the file that AWS's tools read. They are
/// looked up for each request, so that those of a file may be renewed.
fn credentials() -> Result<Credentials, String> {
    if let Some(found) = Credentials::from_env() {
        return Ok(found);
    }
    let missing = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or have them in the file \
                   that AWS_SHARED_CREDENTIALS_FILE names [default: ~/.aws/credentials]";
    let home = || Some(PathBuf::from(variable("HOME")?).join(".aws/credentials"));
    let path = variable("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from).or_else(home).ok_or(missing)?;
    let text = std::fs::read_to_string(path).map_err(|_| missing)?;
    let profile = variable("AWS_PROFILE").unwrap_or_else(|| "default".into());
    of_file(&text, &profile).ok_or_else(|| missing.into())
}

/// The credentials of a profile.
fn of_file(text: &str, profile: &str) -> Option<Credentials> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.strip_prefix('[').and_then(|l| l.strip_suffix(']')).is_some_and(|l| l.trim() == profile))?;
    let (mut key, mut secret, mut token) = (None, None, None);
    for (name, value) in lines.take_while(|line| !line.starts_with('[')).filter_map(|line| line.split_once('=')) {
        let value = Some(value.trim().to_owned());
        match name.trim() {
            "aws_access_key_id" => key = value,
            "aws_secret_access_key" => secret = value,
            "aws_session_token" => token = value,
            _ => {}
        }
    }
    Some(match token {
        Some(token) => Credentials::new_with_token(key?, secret?, token),
        None => Credentials::new(key?, secret?),
    })
}

/// The text of the first element of a name. Lists and errors of S3 have no attributes where we look.
fn element(xml: &str, name: &str) -> Option<String> {
    elements(xml, name).next()
}

fn elements<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = String> + use<'a> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let (text, after) = rest.split_once(&open)?.1.split_once(&close)?;
        rest = after;
        let plain = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&#34;", "\""), ("&#39;", "'")];
        let text = plain.iter().fold(text.to_owned(), |text, (entity, c)| text.replace(entity, c));
        Some(text.replace("&amp;", "&"))
    })
}

/// A key as `encoding-type=url` writes it.
fn decoded(key: &str) -> String {
    let (mut out, mut bytes) = (Vec::new(), key.bytes());
    while let Some(byte) = bytes.next() {
        let digits = |bytes: &mut std::str::Bytes<'_>| {
            let (high, low) = (char::from(bytes.next()?).to_digit(16)?, char::from(bytes.next()?).to_digit(16)?);
            u8::try_from(high * 16 + low).ok()
        };
        out.push(match byte {
            b'%' => digits(&mut bytes).unwrap_or(b'?'),
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_bucket_and_a_prefix_and_nothing_else() {
        assert_eq!(parse("s3://abc"), Ok(("abc".into(), String::new())));
        assert_eq!(parse("s3://abc/d/e/"), Ok(("abc".into(), "d/e/".into())));
        for wrong in
            ["abc", "s3://", "s3://ab", "s3://Abc/d", "s3://a..b", "s3://abc/../d", "s3://abc/d//e", "s3://abc/d/./e"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn events_leave_the_machine_by_https_only() {
        for sound in
            ["https://minio.example.com:9000", "http://127.0.0.1:9000", "http://[::1]:9000", "http://localhost"]
        {
            assert_eq!(check_endpoint(sound), Ok(()), "{sound}");
        }
        for wrong in ["http://minio.example.com", "ftp://x", "minio:9000", "https://key:secret@minio.example.com", ""] {
            assert!(check_endpoint(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn credentials_are_those_of_the_profile() {
        let text = "[other]\naws_access_key_id = a\naws_secret_access_key = b\n\n[default]\naws_access_key_id=c\n\
                    aws_secret_access_key = d=e\naws_session_token = f\n[last]\naws_access_key_id = g\n";
        assert!(of_file(text, "default") == Some(Credentials::new_with_token("c", "d=e", "f")));
        assert!(of_file(text, "other") == Some(Credentials::new("a", "b")));
        assert!(of_file(text, "last").is_none() && of_file(text, "no").is_none());
    }

    #[test]
    fn lists_are_read_as_stores_write_them() {
        let list = "<ListBucketResult><Contents><Key>a%2Bb/c+d%25</Key></Contents><Contents><Key>e&amp;lt;</Key>\
                    </Contents><IsTruncated>true</IsTruncated><NextContinuationToken>1&#34;=</NextContinuationToken>";
        let keys: Vec<String> = elements(list, "Key").collect();
        assert_eq!(keys, ["a%2Bb/c+d%25", "e&lt;"]);
        assert_eq!(
            (decoded(&keys[0]), element(list, "NextContinuationToken")),
            ("a+b/c d%".into(), Some("1\"=".into()))
        );
        assert_eq!((element(list, "EncodingType"), decoded("%zz%4")), (None, "?z?".into()));
    }
}
