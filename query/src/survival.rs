//! Kaplan-Meier quantiles under right-censoring, with 95 % intervals from
//! Greenwood's variance on the log-log scale (Kalbfleisch and Prentice; the
//! default of R's `survival` with `conf.type = "log-log"` and of `lifelines`).

/// How long one subject was watched, and whether its end was seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observation {
    /// Seconds watched.
    pub seconds: f64,
    /// Whether it ended then; otherwise it is still open.
    pub ended: bool,
}

/// A quantile with its 95 % interval; `None` where it is not reached.
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

/// The time by which a share `p` has ended: the first time at which the
/// estimated survival is at most `1 - p`. Its bounds are where the bounds of the
/// survival curve cross that line. Sorts the observations.
pub fn quantile(observations: &mut [Observation], p: f64) -> Interval {
    observations.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let line = 1.0 - p;
    let mut out = Interval::default();
    let (mut survival, mut greenwood) = (1.0f64, 0.0f64);
    let mut at = 0;
    while at < observations.len() {
        let seconds = observations[at].seconds;
        let group = observations[at..].iter().take_while(|o| o.seconds == seconds);
        let (total, ended) = group.fold((0usize, 0usize), |(n, d), o| (n + 1, d + usize::from(o.ended)));
        let at_risk = (observations.len() - at) as f64;
        at += total;
        if ended == 0 {
            continue;
        }
        let d = ended as f64;
        survival *= 1.0 - d / at_risk;
        greenwood += d / (at_risk * (at_risk - d));
        let (low, high) = bounds(survival, greenwood);
        let reached = |bound: f64, slot: &mut Option<f64>| {
            if bound <= line + 1e-12 {
                slot.get_or_insert(seconds);
            }
        };
        reached(survival, &mut out.value);
        reached(low, &mut out.low);
        reached(high, &mut out.high);
    }
    out
}

fn bounds(survival: f64, greenwood: f64) -> (f64, f64) {
    if survival <= 0.0 {
        return (0.0, 0.0);
    }
    let log = survival.ln();
    let spread = Z * greenwood.sqrt() / log.abs();
    (survival.powf(spread.exp()), survival.powf((-spread).exp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observe(ended: &[f64], open: &[f64]) -> Vec<Observation> {
        let ended = ended.iter().map(|&seconds| Observation { seconds, ended: true });
        ended.chain(open.iter().map(|&seconds| Observation { seconds, ended: false })).collect()
    }

    /// The leukaemia data of Freireich et al. (1963), 6-MP arm: the textbook
    /// example, whose median is 23 with the log-log interval from 13.
    #[test]
    fn the_textbook_example() {
        let mut data = observe(
            &[6., 6., 6., 7., 10., 13., 16., 22., 23.],
            &[6., 9., 10., 11., 17., 19., 20., 25., 32., 32., 34., 35.],
        );
        assert_eq!(quantile(&mut data, 0.5), Interval { value: Some(23.0), low: Some(13.0), high: None });
        assert_eq!(quantile(&mut data, 0.9).value, None);
    }

    #[test]
    fn without_censoring_it_is_the_plain_quantile() {
        let mut data = observe(&[1., 2., 3., 4., 5., 6., 7., 8., 9., 10.], &[]);
        assert_eq!(quantile(&mut data, 0.5).value, Some(5.0));
        assert_eq!(quantile(&mut data, 0.9).value, Some(9.0));
        assert_eq!(quantile(&mut [], 0.5), Interval::default());
    }
}
