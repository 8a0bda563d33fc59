//! `cargo xtask verifier`: what the kernel's verifier says of each program, held against the budget in `verifier-budget.toml`.
//!
//! A program that grows past its budget is still loaded by this kernel, but older ones are less clever and every limit is nearer than
//! it was; so growth is a decision, made by editing the budget.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{
    cargo::{AS_FOR_TESTS, Built},
    exec, root, setup,
};

/// The budget, relative to the workspace's root.
const BUDGET: &str = "xtask/verifier-budget.toml";

/// What a program may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    /// Instructions that the verifier walks through, on all paths together.
    verified_instructions: u64,
    /// Stack of the deepest chain of calls, in bytes: each frame in units of 32, as the kernel counts.
    stack_bytes: u64,
}

/// What a program does cost, as the `verifier` program of package `lab` prints it.
#[derive(Debug, Clone, Deserialize)]
struct Cost {
    object: String,
    program: String,
    /// Instructions in the program.
    instructions: u64,
    /// See [`Limits`].
    verified_instructions: u64,
    /// See [`Limits`].
    stack_bytes: u64,
    /// Bytes of machine code.
    jited_bytes: u64,
}

/// Limits by object and program.
type Budget = BTreeMap<String, BTreeMap<String, Limits>>;

/// Loads the programs, prints a table and compares.
///
/// # Errors
/// If this is not root, setup or the build fails, a program is not accepted, or any is over its budget or has none.
pub(crate) fn run() -> Result<()> {
    root::require("verifier")?;
    setup::ensure()?;
    let path = exec::workspace().join(BUDGET);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let budget: Budget = toml::from_str(&text).with_context(|| path.display().to_string())?;

    // The same packages as the tests, so that dependencies are compiled once for both.
    let mut build = exec::cargo();
    build.args(["build", "--workspace", "--exclude", "lb-ebpf"]);
    build.args(["--bin", "verifier"]).args(AS_FOR_TESTS);
    let program = Built::by(&mut build)?.executable("verifier")?;
    let text = exec::output(&mut exec::command(&program))?;
    let costs: Vec<Cost> =
        serde_json::from_str(&text).with_context(|| format!("output of {}", program.display()))?;

    print(&costs, &budget);
    let complaints = complaints(&costs, &budget);
    if !complaints.is_empty() {
        bail!("{}\nThe budget is {BUDGET}", complaints.join("\n"));
    }
    Ok(())
}

fn limits(budget: &Budget, object: &str, program: &str) -> Option<Limits> {
    budget.get(object)?.get(program).copied()
}

fn print(costs: &[Cost], budget: &Budget) {
    println!(
        "{:<28}{:>14}{:>22}{:>18}{:>14}",
        "program", "instructions", "verified / budget", "stack / budget", "machine code"
    );
    for cost in costs {
        let limits = limits(budget, &cost.object, &cost.program);
        let against = |value: u64, limit: Option<u64>| match limit {
            Some(limit) => format!("{value} / {limit}"),
            None => format!("{value} / none"),
        };
        println!(
            "{:<28}{:>14}{:>22}{:>18}{:>12} B",
            format!("{}/{}", cost.object, cost.program),
            cost.instructions,
            against(
                cost.verified_instructions,
                limits.map(|limits| limits.verified_instructions)
            ),
            against(cost.stack_bytes, limits.map(|limits| limits.stack_bytes)),
            cost.jited_bytes,
        );
    }
}

/// What is wrong: programs over their budget, programs without one, and budgets without a program.
fn complaints(costs: &[Cost], budget: &Budget) -> Vec<String> {
    let mut complaints = Vec::new();
    for Cost {
        object,
        program,
        verified_instructions,
        stack_bytes,
        ..
    } in costs
    {
        let Some(limits) = limits(budget, object, program) else {
            complaints.push(format!(
                "{object}/{program} has no budget: add [{object}.{program}] with verified_instructions = {verified_instructions} and \
                 stack_bytes = {stack_bytes}, and some room"
            ));
            continue;
        };
        let measures = [
            (
                "verified instructions",
                *verified_instructions,
                limits.verified_instructions,
            ),
            ("bytes of stack", *stack_bytes, limits.stack_bytes),
        ];
        for (measure, value, limit) in measures
            .into_iter()
            .filter(|(_, value, limit)| value > limit)
        {
            complaints.push(format!(
                "{object}/{program} takes {value} {measure} and its budget is {limit}: make it simpler, or raise the budget and say why"
            ));
        }
    }
    for (object, programs) in budget {
        for program in programs.keys() {
            if !costs
                .iter()
                .any(|cost| cost.object == *object && cost.program == *program)
            {
                complaints.push(format!(
                    "{object}/{program} has a budget, but there is no such program"
                ));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(program: &str, verified_instructions: u64, stack_bytes: u64) -> Cost {
        Cost {
            object: "tether".to_owned(),
            program: program.to_owned(),
            instructions: 10,
            verified_instructions,
            stack_bytes,
            jited_bytes: 80,
        }
    }

    fn budget() -> Budget {
        toml::from_str("[tether.balance]\nverified_instructions = 1000\nstack_bytes = 256\n")
            .expect("the budget's format")
    }

    #[test]
    fn a_program_at_its_limits_is_within_budget() {
        assert_eq!(
            complaints(&[cost("balance", 1000, 256)], &budget()),
            Vec::<String>::new()
        );
    }

    #[test]
    fn each_measure_over_budget_is_named() {
        let complaints = complaints(&[cost("balance", 1001, 257)], &budget());
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(
            complaints[0].starts_with(
                "tether/balance takes 1001 verified instructions and its budget is 1000"
            )
        );
        assert!(
            complaints[1]
                .starts_with("tether/balance takes 257 bytes of stack and its budget is 256")
        );
    }

    #[test]
    fn a_program_without_a_budget_and_a_budget_without_a_program_are_named() {
        let complaints = complaints(&[cost("decap", 1, 0)], &budget());
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints[0].starts_with("tether/decap has no budget"));
        assert_eq!(
            complaints[1],
            "tether/balance has a budget, but there is no such program"
        );
    }

    #[test]
    fn a_misspelt_limit_is_refused() {
        let text = "[tether.balance]\nverified_instructions = 1\nstack = 2\n";
        assert!(toml::from_str::<Budget>(text).is_err());
    }

    #[test]
    fn the_repositorys_budget_can_be_read() {
        let text =
            fs::read_to_string(exec::workspace().join(BUDGET)).expect("it is in the repository");
        toml::from_str::<Budget>(&text).expect("its format");
    }
}
