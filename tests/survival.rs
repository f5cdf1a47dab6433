//! The estimates of dwell time beside those of Python's lifelines, on random data: ties, nothing censored,
//! everything censored, one observation, competing ends.

mod support;

use std::io::Write as _;
use std::process::{Command, Stdio};

use custody_query::survival::{End, Observation, incidence, incidence_at, quantile};
use serde_json::{Value, json};

/// A generator that gives the same numbers everywhere (Knuth's MMIX).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// How the subjects of a case end: of a hundred so many are open, and so many end otherwise.
fn case(random: &mut Random, n: u64, is_tied: bool, open: u64, otherwise: u64) -> Vec<Observation> {
    (0..n)
        .map(|_| {
            // Whole seconds with ties, or so fine that there are none.
            let seconds = if is_tied { 1 + random.below(12) } else { 1_000 + random.below(1 << 31) };
            let draw = random.below(100);
            // lifelines moves ends of different kinds at one time apart, and past what was censored then.
            let seconds = seconds as f64 + if is_tied && otherwise > 0 && draw < open { 0.5 } else { 0.0 };
            let end = match draw {
                _ if draw < open => End::Open,
                _ if draw < open + otherwise => End::Otherwise,
                _ => End::Asked,
            };
            Observation { seconds, end }
        })
        .collect()
}

fn cases() -> Vec<(bool, Vec<Observation>)> {
    let mut random = Random(20_261_121);
    let mut out = Vec::new();
    for n in [1, 2, 3, 7, 30, 200] {
        for is_tied in [true, false] {
            // Some, none and all censored; then with competing ends.
            for (open, otherwise) in [(30, 0), (0, 0), (100, 0), (80, 0), (20, 30), (0, 50), (50, 45)] {
                out.push((is_tied, case(&mut random, n, is_tied, open, otherwise)));
            }
        }
    }
    out
}

fn lifelines(cases: &[(bool, Vec<Observation>)]) -> Vec<Value> {
    let number = |end: End| match end {
        End::Open => 0,
        End::Asked => 1,
        End::Otherwise => 2,
    };
    let one = |(_, case): &(bool, Vec<Observation>)| {
        let seconds: Vec<f64> = case.iter().map(|o| o.seconds).collect();
        json!({"seconds": seconds, "ends": case.iter().map(|o| number(o.end)).collect::<Vec<_>>()})
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/survival.py");
    let mut child =
        Command::new(support::python()).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let input = Value::from(cases.iter().map(one).collect::<Vec<_>>()).to_string();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn estimates_are_those_of_lifelines() {
    let mut cases = cases();
    let answers = lifelines(&cases);
    assert_eq!(answers.len(), cases.len());
    let (mut quantiles, mut variances) = (0, 0);
    for ((is_tied, case), answer) in cases.iter_mut().zip(&answers) {
        let curve = incidence(case);
        let shown = format!("{case:?}");
        if let Some(found) = answer.get("kaplan_meier") {
            same_curve(&curve, found, 0.0, &shown);
            for (p, found) in [0.5, 0.9, 0.99].into_iter().zip(found["quantiles"].as_array().unwrap()) {
                let own = quantile(&curve, p);
                assert_eq!(json!([own.value, own.low, own.high]), *found, "{p} {shown}");
                quantiles += usize::from(own.low.is_some());
            }
        }
        let Some(found) = answer.get("aalen_johansen") else { continue };
        // Ties of different ends lifelines moves apart at random, by less than this.
        same_curve(&curve, found, 0.01, &shown);
        if *is_tied {
            continue;
        }
        let times = found["times"].as_array().unwrap().iter().map(|t| t.as_f64().unwrap());
        for (time, variance) in times.zip(found["variance"].as_array().unwrap()) {
            let own = incidence_at(&curve, time);
            if let (Some(own), Some(theirs)) = (own.variance, variance.as_f64()) {
                assert!((own - theirs).abs() < 1e-9, "{time}: {own} {theirs} {shown}");
                variances += 1;
            }
        }
    }
    assert!(quantiles > 20 && variances > 200, "too little was compared: {quantiles}, {variances}");
}

/// The same share at each time of lifelines' table, or just behind it.
fn same_curve(curve: &[custody_query::survival::Step], found: &Value, moved: f64, shown: &str) {
    let times: Vec<f64> = found["times"].as_array().unwrap().iter().map(|t| t.as_f64().unwrap()).collect();
    let shares: Vec<f64> = found["incidence"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
    for (i, (time, share)) in times.iter().zip(&shares).enumerate() {
        // Within a tie that was moved apart only its end is the same.
        if times.get(i + 1).is_some_and(|next| next - time <= 2.0 * moved) {
            continue;
        }
        let own = incidence_at(curve, time + moved).incidence;
        assert!((own - share).abs() < 1e-9, "{time}: {own} {share} {shown}");
    }
}
