//! `mkimage [OPTION]... CACHE BACKING`: a cache set with many extents, in seconds.

#![forbid(unsafe_code)]

use brigade_benches::HEAP;
use brigade_benches::image::{self, USAGE};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (recipe, [cache, backing]) = match image::parse(&arguments) {
        Ok(wanted) => wanted,
        Err(why) => {
            eprintln!("mkimage: {why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let start = Instant::now();
    match image::make(&recipe, Path::new(&cache), Path::new(&backing)) {
        Ok(layout) => {
            println!(
                "{} extents in {} nodes of depth {}, {} buckets of data of {}, cache {} MiB, backing {} MiB, {:.1} s, heap at most {:.0} MiB",
                recipe.extents,
                layout.nodes.iter().sum::<u64>(),
                layout.nodes.len() - 1,
                layout.data_end - layout.data_start,
                layout.geometry.nbuckets,
                layout.cache_sectors >> 11,
                layout.backing_sectors >> 11,
                start.elapsed().as_secs_f64(),
                HEAP.peak_usage_as_mb()
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("mkimage: {error}");
            ExitCode::FAILURE
        }
    }
}
