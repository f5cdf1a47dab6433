//! How long things take that have not all ended yet, and may end in more than one way.
//!
//! One estimator: the cumulative incidence of the end that is asked for (Aalen-Johansen), under
//! right-censoring and with other ends competing. Where nothing competes it is one minus
//! Kaplan-Meier, and its variance is Greenwood's, exactly. 95 % intervals are on the log(-log)
//! scale of what has not ended (Kalbfleisch and Prentice; `conf.type = "log-log"` of R's `survival`,
//! and what `lifelines` does). Where everything that was left ended at once the variance is not
//! defined, and there is no interval, as in R.

/// How the watching of one subject ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It has not: it is still open.
    Open,
    /// As is asked for.
    Asked,
    /// In another way, after which it can never end as is asked for.
    Otherwise,
}

/// How long one subject was watched, and how that ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observation {
    /// Seconds watched.
    pub seconds: f64,
    /// How it ended then.
    pub end: End,
}

/// A value with its 95 % interval; `None` where it is not reached, or not defined.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Interval {
    /// The estimate.
    pub value: Option<f64>,
    /// Lower bound.
    pub low: Option<f64>,
    /// Upper bound.
    pub high: Option<f64>,
}

/// The normal quantile of a two-sided 95 % interval.
const Z: f64 = 1.959_963_984_540_054;

/// What rounding may do to a probability.
const ROUNDING: f64 = 1e-12;

/// The share that has ended as is asked for, from one time on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// From when on.
    pub seconds: f64,
    /// The share.
    pub incidence: f64,
    /// Variance of it; `None` where it is not defined.
    pub variance: Option<f64>,
}

impl Step {
    /// The share and its interval.
    pub fn interval(&self) -> Interval {
        let bounds = self.variance.and_then(|variance| bounds(self.incidence, variance));
        let (low, high) = bounds.unzip();
        Interval { value: Some(self.incidence), low, high }
    }
}

/// The curve of the cumulative incidence: a step for each time at which something ended.
/// Sorts the observations.
pub fn incidence(observations: &mut [Observation]) -> Vec<Step> {
    observations.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let mut out = Vec::new();
    let (mut survival, mut share) = (1.0f64, 0.0f64);
    // Sums over the steps so far, from which the variance follows at each: see `variance`.
    let mut sums = Some([0.0f64; 6]);
    let mut at = 0;
    while at < observations.len() {
        let seconds = observations[at].seconds;
        let group = observations[at..].iter().take_while(|o| o.seconds == seconds);
        let count = |end: End| move |n: usize, o: &Observation| n + usize::from(o.end == end);
        let total = group.clone().count();
        let asked = group.clone().fold(0, count(End::Asked)) as f64;
        let otherwise = group.fold(0, count(End::Otherwise)) as f64;
        let at_risk = (observations.len() - at) as f64;
        at += total;
        let ended = asked + otherwise;
        if ended == 0.0 {
            continue;
        }
        let before = survival;
        share += before * asked / at_risk;
        survival *= 1.0 - ended / at_risk;
        if ended >= at_risk {
            sums = None;
        }
        if let Some([a, af, aff, b, c, cf]) = &mut sums {
            let weight = ended / (at_risk * (at_risk - ended));
            let own = before * asked / at_risk / at_risk;
            *a += weight;
            *af += weight * share;
            *aff += weight * share * share;
            *b += before * own * (at_risk - asked) / at_risk;
            *c += own;
            *cf += own * share;
        }
        out.push(Step { seconds, incidence: share.min(1.0), variance: sums.map(|sums| variance(share, sums)) });
    }
    out
}

/// The delta method's variance of the cumulative incidence F at its newest step: the sum over steps j of
/// `(F-F_j)^2 d/(n(n-d)) + S^2 (n-d1)/n d1/n^2 - 2 (F-F_j) S d1/n^2`, with n at risk, d ended, d1 of them
/// as is asked for, and S what had not ended before (Marubini and Valsecchi, 1995, 10.12).
fn variance(share: f64, [a, af, aff, b, c, cf]: [f64; 6]) -> f64 {
    (share * share * a - 2.0 * share * af + aff + b - 2.0 * (share * c - cf)).max(0.0)
}

/// The 95 % interval of a share.
fn bounds(share: f64, variance: f64) -> Option<(f64, f64)> {
    let rest = 1.0 - share;
    if share <= ROUNDING || rest <= ROUNDING {
        return None;
    }
    let log = rest.ln().abs();
    let spread = Z * variance.sqrt() / (rest * log);
    Some((1.0 - rest.powf((-spread).exp()), 1.0 - rest.powf(spread.exp())))
}

/// The share that has ended as is asked for by a time.
pub fn incidence_at(curve: &[Step], seconds: f64) -> Step {
    let after = curve.partition_point(|step| step.seconds <= seconds);
    let none = Step { seconds, incidence: 0.0, variance: None };
    after.checked_sub(1).map_or(none, |i| Step { seconds, ..curve[i] })
}

/// The time by which a share `p` has ended as is asked for: the first at which the curve is at
/// least `p`. Its bounds are where the bounds of the curve cross that line.
pub fn quantile(curve: &[Step], p: f64) -> Interval {
    let mut out = Interval::default();
    for step in curve {
        let interval = step.interval();
        let reached = |share: Option<f64>, slot: &mut Option<f64>| {
            if share.is_some_and(|share| share >= p - ROUNDING) {
                slot.get_or_insert(step.seconds);
            }
        };
        reached(interval.value, &mut out.value);
        // What may be more is reached sooner.
        reached(interval.high, &mut out.low);
        reached(interval.low, &mut out.high);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn observe(asked: &[f64], otherwise: &[f64], open: &[f64]) -> Vec<Observation> {
        let of = |times: &[f64], end| times.iter().map(|&seconds| Observation { seconds, end }).collect::<Vec<_>>();
        [of(asked, End::Asked), of(otherwise, End::Otherwise), of(open, End::Open)].concat()
    }

    /// The leukaemia data of Freireich et al. (1963), 6-MP arm: the textbook
    /// example, whose median is 23 with the log-log interval from 13.
    #[test]
    fn the_textbook_example() {
        let mut data = observe(
            &[6., 6., 6., 7., 10., 13., 16., 22., 23.],
            &[],
            &[6., 9., 10., 11., 17., 19., 20., 25., 32., 32., 34., 35.],
        );
        let curve = incidence(&mut data);
        assert_eq!(quantile(&curve, 0.5), Interval { value: Some(23.0), low: Some(13.0), high: None });
        assert_eq!(quantile(&curve, 0.9).value, None);
    }

    #[test]
    fn without_censoring_it_is_the_plain_quantile() {
        let curve = incidence(&mut observe(&[1., 2., 3., 4., 5., 6., 7., 8., 9., 10.], &[], &[]));
        assert_eq!(quantile(&curve, 0.5).value, Some(5.0));
        assert_eq!(quantile(&curve, 0.9).value, Some(9.0));
        assert_eq!(quantile(&[], 0.5), Interval::default());
    }

    #[test]
    fn one_observation_has_an_estimate_and_no_interval() {
        let curve = incidence(&mut observe(&[7.0], &[], &[]));
        assert_eq!(quantile(&curve, 0.5), Interval { value: Some(7.0), low: None, high: None });
        assert_eq!(incidence(&mut observe(&[], &[], &[7.0])), []);
        let suppressed = incidence(&mut observe(&[], &[7.0], &[]));
        assert_eq!(quantile(&suppressed, 0.5).value, None, "what was suppressed is never noticed");
    }

    proptest! {
        /// What nobody can notice any more is not censored: were it, the estimate would be larger.
        #[test]
        fn the_variance_is_that_of_the_sum_itself(
            seed in proptest::collection::vec((1u32..30, 0u8..3), 1..60),
        ) {
            let end = |n: u8| [End::Open, End::Asked, End::Otherwise][n as usize];
            let mut data: Vec<Observation> =
                seed.iter().map(|&(t, n)| Observation { seconds: f64::from(t), end: end(n) }).collect();
            let curve = incidence(&mut data);
            for (i, step) in curve.iter().enumerate() {
                let Some(found) = step.variance else { continue };
                let mut survival = 1.0;
                let mut want = 0.0;
                for before in &curve[..=i] {
                    let n = data.iter().filter(|o| o.seconds >= before.seconds).count() as f64;
                    let of = |e: End| data.iter().filter(|o| o.seconds == before.seconds && o.end == e).count() as f64;
                    let (d1, d) = (of(End::Asked), of(End::Asked) + of(End::Otherwise));
                    let gap = step.incidence - before.incidence;
                    want += gap * gap * d / (n * (n - d)) + survival * survival * (n - d1) / n * d1 / (n * n)
                        - 2.0 * gap * survival * d1 / (n * n);
                    survival *= 1.0 - d / n;
                }
                prop_assert!((found - want).abs() < 1e-9, "{found} {want}");
            }
            let shares: Vec<f64> = curve.iter().map(|s| s.incidence).collect();
            prop_assert!(shares.windows(2).all(|w| w[0] <= w[1]) && shares.iter().all(|s| (0.0..=1.0).contains(s)));
        }
    }
}
