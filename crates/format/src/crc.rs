//! The one checksum of the format, CRC-64/WE with a choice of initial value (`docs/format.md` 2).
//!
//! Every structure but a version 1 bset starts from [`SEED`]; that one starts from the pointer word that
//! names its node, so that a node read at the wrong place, or from an earlier life of its bucket, fails.

use crc_fast::{CrcAlgorithm, Digest};

/// The initial value of everything but a version 1 bset.
pub const SEED: u64 = !0;

/// The checksum of `bytes` from the initial value `seed`.
pub fn checksum(seed: u64, bytes: &[u8]) -> u64 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc64We, seed);
    digest.update(bytes);
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_published_vectors_come_out() {
        assert_eq!(checksum(SEED, b""), 0);
        assert_eq!(checksum(SEED, b"123456789"), 0x62ec_59e3_f1a4_f00a);
        assert_eq!(checksum(SEED, &[0; 8]), 0x0353_4142_a6ce_566d);
        assert_eq!(
            checksum(0x0123_4567_89ab_cdef, b"123456789"),
            0xef39_1a53_4651_a8bb
        );
    }

    /// The definition, one bit at a time.
    fn naive(seed: u64, bytes: &[u8]) -> u64 {
        let mut crc = seed;
        for &byte in bytes {
            crc ^= u64::from(byte) << 56;
            for _ in 0..8 {
                let carry = crc >> 63 == 1;
                crc <<= 1;
                if carry {
                    crc ^= 0x42f0_e1eb_a9ea_3693;
                }
            }
        }
        !crc
    }

    proptest! {
        #[test]
        fn any_length_and_seed_agree_with_the_definition(
            seed: u64,
            bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        ) {
            prop_assert_eq!(checksum(seed, &bytes), naive(seed, &bytes));
        }
    }
}
