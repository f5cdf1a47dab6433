//! What is wrong with a query string, in the words of who sent it: the parameter, and what it should be.

use axum::extract::rejection::QueryRejection;

/// What axum puts in front.
const BEFORE: &str = "Failed to deserialize query string: ";

/// Names the parameter that cannot be taken; `parameters` says which there are.
pub(super) fn wrong(rejection: &QueryRejection, parameters: &str) -> String {
    told(&rejection.body_text(), parameters)
}

fn told(text: &str, parameters: &str) -> String {
    let text = text.strip_prefix(BEFORE).unwrap_or(text);
    let named = |before: &str| text.split_once(before)?.1.split('`').next();
    let what = if let Some(name) = named("unknown field `") {
        format!("there is no parameter {name:?}")
    } else if let Some(name) = named("duplicate field `") {
        format!("the parameter {name} is there twice")
    } else if let Some(name) = named("missing field `") {
        format!("the parameter {name} is missing")
    } else {
        match text.split_once(": ") {
            Some((name, what)) if what.contains("invalid digit") || what.contains("empty string") => {
                format!("the parameter {name} must be a whole number")
            }
            Some((name, what)) => format!("the parameter {name} cannot be taken: {what}"),
            None => format!("the query string cannot be read: {text}"),
        }
    };
    format!("{what}; the parameters are {parameters}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::Query;
    use axum::http::Uri;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        #[expect(dead_code, reason = "only whether it can be read is asked")]
        id: String,
        #[expect(dead_code, reason = "only whether it can be read is asked")]
        limit: Option<usize>,
    }

    #[test]
    fn each_fault_names_its_parameter() {
        for (query, want) in [
            ("limit=x&id=1", "the parameter limit must be a whole number; the parameters are id and limit"),
            ("limit=&id=1", "the parameter limit must be a whole number; the parameters are id and limit"),
            ("limit=-1&id=1", "the parameter limit must be a whole number; the parameters are id and limit"),
            ("id=1&kinds=a", "there is no parameter \"kinds\"; the parameters are id and limit"),
            ("id=1&id=2", "the parameter id is there twice; the parameters are id and limit"),
            ("limit=1", "the parameter id is missing; the parameters are id and limit"),
        ] {
            let uri: Uri = format!("/?{query}").parse().unwrap();
            let rejection = Query::<Asked>::try_from_uri(&uri).unwrap_err();
            assert_eq!(wrong(&rejection, "id and limit"), want, "{query}");
        }
        let large = "Failed to deserialize query string: limit: number too large to fit in target type";
        assert!(told(large, "").starts_with("the parameter limit cannot be taken: number too large"));
    }
}
