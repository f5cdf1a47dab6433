//! Bodies that came compressed, as it was asked for.

use std::io::{Error, ErrorKind, Read};

/// What is asked for, the cheapest first.
pub const ACCEPTED: &str = "zstd, gzip;q=0.5";

/// The most that may become of a compressed body: a page is some 16 MiB and its proof less.
const BYTES_MAX: u64 = 1 << 30;

/// Reads a body of this content coding to its end.
pub fn read(encoding: Option<&str>, mut body: impl Read) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    let inflated: Box<dyn Read> = match encoding {
        None | Some("identity") => return body.read_to_end(&mut out).map(|_| out),
        Some("gzip") => Box::new(flate2::read::MultiGzDecoder::new(body)),
        Some("zstd") => Box::new(zstd::stream::read::Decoder::new(body)?),
        Some(other) => return Err(Error::new(ErrorKind::InvalidData, format!("nobody asked for the coding {other}"))),
    };
    inflated.take(BYTES_MAX).read_to_end(&mut out)?;
    match out.len() as u64 {
        BYTES_MAX => Err(Error::new(ErrorKind::InvalidData, "it would be more than 1 GiB")),
        _ => Ok(out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn bodies_are_read_as_they_were_sent() {
        let text = b"an event\n".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let zstd = zstd::stream::encode_all(&text[..], 1).unwrap();
        for (encoding, body) in [(None, text.clone()), (Some("gzip"), gzip.finish().unwrap()), (Some("zstd"), zstd)] {
            assert_eq!(read(encoding, &body[..]).unwrap(), text, "{encoding:?}");
            if encoding.is_some() {
                assert!(read(encoding, &body[..body.len() - 3]).is_err(), "{encoding:?}");
            }
        }
        assert!(read(Some("br"), &text[..]).is_err());
    }
}
