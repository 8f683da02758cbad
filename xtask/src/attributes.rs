//! `cargo x tidy`'s look at docs/attributes.md: each attribute of the kernel has its row, and each setting that has a kernel's name is told there.

use crate::tidy::Source;
use regex_lite::Regex;
use std::collections::BTreeSet;

const PAGE: &str = "docs/attributes.md";
const DEFINITIONS: &str = "crates/engine/src/settings/definitions.rs";

/// Headings of the page and the kernel's attributes below each.
const ATTRIBUTES: &[(&str, &str)] = &[
    ("Global", "register register_quiet pendings_cleanup"),
    (
        "Backing device",
        "attach detach stop running state cache_mode readahead_cache_policy stop_when_cache_set_failed sequential_cutoff label \
         dirty_data writeback_running writeback_percent writeback_delay writeback_rate writeback_rate_minimum \
         writeback_rate_update_seconds writeback_rate_p_term_inverse writeback_rate_i_term_inverse writeback_rate_fp_term_low \
         writeback_rate_fp_term_mid writeback_rate_fp_term_high writeback_consider_fragment writeback_rate_debug \
         writeback_metadata stripe_size partial_stripes_expensive io_errors io_error_limit io_disable clear_stats \
         backing_dev_name backing_dev_uuid verify bypass_torture_test stats_total stats_five_minute stats_hour stats_day cache dev",
    ),
    ("Flash volume", "size label unregister"),
    (
        "Cache set",
        "unregister stop flash_vol_create synchronous journal_delay_ms bucket_size block_size tree_depth root_usage_percent \
         btree_cache_size cache_available_percent average_key_size errors io_error_limit io_error_halflife congested \
         congested_read_threshold_us congested_write_threshold_us clear_stats bdev<n> volume<n> cache<n> stats_total \
         stats_five_minute stats_hour stats_day",
    ),
    (
        "Cache set, internal",
        "active_journal_entries btree_nodes btree_used_percent btree_cache_max_chain bset_tree_stats btree_gc_* btree_split_* \
         btree_sort_* btree_read_* cache_read_races reclaim reclaimed_journal_buckets flush_write writeback_keys_done \
         writeback_keys_failed trigger_gc prune_cache gc_always_rewrite btree_shrinker_disabled copy_gc_enabled \
         idle_max_writeback_rate gc_after_writeback io_disable cutoff_writeback cutoff_writeback_sync feature_compat \
         feature_ro_compat feature_incompat verify key_merging_disabled expensive_debug_checks",
    ),
    (
        "Cache device",
        "bucket_size block_size nbuckets discard cache_replacement_policy written btree_written metadata_written io_errors \
         clear_stats priority_stats set",
    ),
];

/// What a row may say of an attribute, first thing.
const VERDICTS: [&str; 4] = ["same", "better", "other", "none"];

/// A row of the page.
struct Row<'a> {
    section: &'a str,
    names: BTreeSet<&'a str>,
    here: &'a str,
    verdict: &'a str,
    line: usize,
}

fn rows(page: &str) -> Vec<Row<'_>> {
    let (mut section, mut rows) = ("", Vec::new());
    for (at, text) in page.lines().enumerate() {
        section = text.strip_prefix("## ").unwrap_or(section);
        let columns: Vec<&str> = text.split('|').map(str::trim).collect();
        if let [_, names, here, verdict, _] = columns.as_slice()
            && names.starts_with('`')
        {
            rows.push(Row {
                section,
                names: names.split('`').skip(1).step_by(2).collect(),
                here,
                verdict,
                line: at + 1,
            });
        }
    }
    rows
}

/// See the module documentation.
pub(crate) fn check(sources: &[Source], complaints: &mut Vec<String>) {
    let text_of = |path: &str| sources.iter().find(|source| source.path == path);
    let (Some(page), Some(definitions)) = (text_of(PAGE), text_of(DEFINITIONS)) else {
        return;
    };
    let rows = rows(&page.text);
    for (section, names) in ATTRIBUTES {
        for name in names.split_whitespace() {
            let is_it = |row: &&Row| row.section == *section && row.names.contains(name);
            let count = rows.iter().filter(is_it).count();
            if count != 1 {
                complaints.push(format!(
                    "{PAGE}: {section}: {name} has {count} rows instead of one"
                ));
            }
        }
    }
    for row in &rows {
        let said = row
            .verdict
            .split([':', ';', ',', ' '])
            .next()
            .unwrap_or_default();
        if !VERDICTS.contains(&said) {
            let line = row.line;
            complaints.push(format!("{PAGE}:{line}: `{said}` is none of {VERDICTS:?}"));
        }
    }
    for (name, is_volumes) in kernels_settings(&definitions.text) {
        let told = format!("setting `{name}`");
        let is_it =
            |row: &Row| (row.section == "Backing device") == is_volumes && row.here.contains(&told);
        if !rows.iter().any(is_it) {
            complaints.push(format!("{PAGE}: the {told} has no row"));
        }
    }
}

/// Settings that the kernel has by the same name, and whether each is a volume's.
fn kernels_settings(definitions: &str) -> Vec<(&str, bool)> {
    let Ok(row) = Regex::new(r#"(?m)^    \w+ "(\w+)" (Volume|CacheSet) Kernel "#) else {
        return Vec::new();
    };
    let found = row.captures_iter(definitions);
    let found = found.filter_map(|row| Some((row.get(1)?.as_str(), &row[2] == "Volume")));
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOBS: &str = "    A \"journal_delay_ms\" CacheSet Kernel Time(1), 1, Nowhere,\n    B \"deadline\" Volume Brigade Switch, 0,\n";

    fn complaints(page: &str) -> Vec<String> {
        let source = |path: &str, text: &str| Source {
            path: path.into(),
            text: text.into(),
        };
        let mut complaints = Vec::new();
        check(
            &[source(PAGE, page), source(DEFINITIONS, KNOBS)],
            &mut complaints,
        );
        complaints
    }

    fn full_page() -> String {
        let section = |(section, names): &(&str, &str)| {
            let row = |name: &str| format!("| `{name}` | setting `{name}` | same |\n");
            let rows: String = names.split_whitespace().map(row).collect();
            format!("## {section}\n\n{rows}")
        };
        ATTRIBUTES.iter().map(section).collect()
    }

    #[test]
    fn a_page_with_every_attribute_is_fine_and_what_is_missing_or_twice_is_told() {
        let page = full_page();
        assert!(complaints(&page).is_empty(), "{:?}", complaints(&page));
        let without = page.replacen("| `state` |", "| `estate` |", 1);
        assert_eq!(complaints(&without).len(), 1);
        let twice = page.replacen("| `state` |", "| `running`, `state` |", 1);
        assert_eq!(complaints(&twice).len(), 1);
        assert_eq!(complaints(&page.replacen("same", "fine", 1)).len(), 1);
    }

    #[test]
    fn a_setting_of_the_kernels_without_a_row_is_told_and_brigades_own_are_not() {
        assert_eq!(
            kernels_settings(KNOBS),
            [("journal_delay_ms", false)],
            "one is Brigade's own"
        );
        let page = full_page().replace("setting `journal_delay_ms`", "nothing");
        assert_eq!(complaints(&page).len(), 1);
    }
}
