//! The checks: each a SQL file whose head names its severity, its tags and its knobs. They follow
//! what comes in, and tell each hit once by a record of the log; docs/checks.md lists them,
//! docs/rules.md says how to write more.

mod evaluator;
mod examples;
mod follow;
mod functions;
mod hit;
mod rule;
mod run;
mod state;
#[cfg(test)]
mod tests;
mod tuning;
mod violations;

pub use examples::{Tried, try_rules};
pub use follow::{Following, Live, follow};
pub use hit::{HitBuilder, HitRow};
pub use rule::{Rule, SEVERITIES, Setting};
pub use run::Checker;
pub use tuning::Tuning;
pub(crate) use violations::register;

macro_rules! checks {
    ($($id:literal),+ $(,)?) => {
        /// The checks that come with Custody: id, definition, examples.
        pub(crate) const BUILT_IN: &[(&str, &str, &str)] = &[$((
            $id,
            include_str!(concat!("checks/", $id, ".sql")),
            include_str!(concat!("checks/", $id, ".examples.json")),
        )),+];
    };
}

include!("checks/list.rs");

/// The checks that come with Custody.
pub fn built_in() -> Vec<Rule> {
    let rule = |(id, sql, examples): &(&str, &str, &str)| {
        let rule = Rule::parse(id, sql).ok()?;
        Some(Rule { examples: Some((*examples).to_owned()), ..rule })
    };
    BUILT_IN.iter().filter_map(rule).collect()
}
