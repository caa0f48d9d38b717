//! The numbers of INCRBYFLOAT. Redis computes them as C's `long double`, which is an x87 number of 64 bits of mantissa on
//! x86-64: 19 digits, where an `f64` has 16 (0.1 + 0.2 is 0.3 here, and 0.30000000000000004 there). So they are computed
//! here the same way: parsed, added and printed (`%.17Lf` without the zeros behind) with the one rounding each that the
//! hardware and glibc make. On machines where `long double` is something else (aarch64), Redis's own replies differ in
//! the last digits; these are those of x86-64.
//!
//! Runs for one command. Nothing here is fast, everything is exact.

use std::cmp::Ordering;

/// Bits of the mantissa.
const BITS: u32 = 64;

/// The exponent of the last bit of the smallest and the largest number.
const LEAST: i32 = -16445;
const MOST: i32 = 16383 - 63;

/// Redis reads a number from a buffer of this size.
const TEXT_MAX: usize = 5 * 1024;

/// `mantissa * 2^exponent`, below zero where `negative`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LongDouble {
    negative: bool,
    size: Size,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// Normalised: the highest bit is set, except at the smallest exponent, or zero.
    Finite {
        mantissa: u64,
        exponent: i32,
    },
    Infinite,
}

const ZERO: Size = Size::Finite { mantissa: 0, exponent: LEAST };

impl LongDouble {
    pub(super) const ZERO: LongDouble = LongDouble { negative: false, size: ZERO };

    /// As Redis's `string2ld` reads it by `strtold`: nothing around the number, no `nan`, nothing too large or too small.
    pub(super) fn parse(text: &[u8]) -> Option<LongDouble> {
        if text.is_empty() || text.len() >= TEXT_MAX {
            return None;
        }
        let (negative, rest) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        let word = rest.to_ascii_lowercase();
        if matches!(word.as_slice(), b"inf" | b"infinity") {
            return Some(LongDouble { negative, size: Size::Infinite });
        }
        let (size, is_zero) = match word.strip_prefix(b"0x") {
            Some(digits) => hexadecimal(digits)?,
            None => decimal(&word)?,
        };
        // Out of range at either end is ERANGE, which Redis refuses.
        match size {
            Size::Infinite => None,
            size if size == ZERO && !is_zero => None,
            size => Some(LongDouble { negative, size }),
        }
    }

    pub(super) fn is_finite(self) -> bool {
        self.size != Size::Infinite
    }

    /// Round to nearest, ties to even. None: infinities of both signs, which make no number.
    pub(super) fn add(self, other: LongDouble) -> Option<LongDouble> {
        let (Size::Finite { mantissa: a, exponent: ea }, Size::Finite { mantissa: b, exponent: eb }) =
            (self.size, other.size)
        else {
            let opposite = !self.is_finite() && !other.is_finite() && self.negative != other.negative;
            let infinite = if self.is_finite() { other } else { self };
            return (!opposite).then_some(infinite);
        };
        // The larger exponent stands 62 bits up: one bit is left for the carry, and what of the other falls off below is far
        // under the last bit that counts, so one sticky bit stands for all of it.
        let ((big, eb_, big_negative), (small, es, small_negative)) = if (ea, a) >= (eb, b) {
            ((a, ea, self.negative), (b, eb, other.negative))
        } else {
            ((b, eb, other.negative), (a, ea, self.negative))
        };
        const UP: u32 = 62;
        let big = u128::from(big) << UP;
        let small = shifted_down(u128::from(small) << UP, (eb_ - es) as u32);
        let (sum, negative) = match big_negative == small_negative {
            true => (big + small, big_negative),
            false if big >= small => (big - small, big_negative),
            false => (small - big, small_negative),
        };
        let negative = negative && sum != 0 || sum == 0 && self.negative && other.negative;
        Some(LongDouble { negative, size: round(sum, eb_ - UP as i32, false) })
    }

    /// `%.17Lf` with the zeros at its end, and then the point, left out. Never called for an infinity.
    pub(super) fn text(self) -> String {
        /// Digits behind the point.
        const DIGITS: usize = 17;
        const SCALE: u128 = 10_u128.pow(DIGITS as u32);
        let Size::Finite { mantissa, exponent } = self.size else {
            return if self.negative { "-inf" } else { "inf" }.to_owned();
        };
        let (mut whole, mut fraction) = (Big::from(u128::from(mantissa)), 0);
        if exponent >= 0 {
            whole.shift_up(exponent as u32);
        } else {
            let down = exponent.unsigned_abs();
            let above = if down < BITS { mantissa >> down } else { 0 };
            let below = if down < BITS { mantissa - (above << down) } else { mantissa };
            // Below 2^64 * 10^17 < 2^121.
            fraction = shifted_even(u128::from(below) * SCALE, down);
            whole = Big::from(u128::from(above) + u128::from(fraction == SCALE));
            fraction %= SCALE;
        }
        let mut text = whole.to_string();
        if fraction > 0 {
            let digits = format!("{fraction:0DIGITS$}");
            text = format!("{text}.{}", digits.trim_end_matches('0'));
        }
        // Redis turns `-0` into `0`.
        if self.negative && text != "0" { format!("-{text}") } else { text }
    }
}

/// Shifted right, with the last bit set where any bit fell off.
fn shifted_down(n: u128, by: u32) -> u128 {
    if by >= 128 {
        return u128::from(n != 0);
    }
    let kept = n >> by;
    kept | u128::from(kept << by != n)
}

/// Shifted right, rounded to nearest, ties to even.
fn shifted_even(n: u128, by: u32) -> u128 {
    match by {
        0 => n,
        // `n` is below 2^121 here: less than half.
        128.. => 0,
        by => {
            let (kept, rest, half) = (n >> by, n & ((1 << by) - 1), 1 << (by - 1));
            match rest.cmp(&half) {
                Ordering::Less => kept,
                Ordering::Equal => kept + (kept & 1),
                Ordering::Greater => kept + 1,
            }
        }
    }
}

/// The nearest number to `n * 2^exponent`; `sticky`: and a little more.
fn round(n: u128, exponent: i32, sticky: bool) -> Size {
    if n == 0 {
        return ZERO;
    }
    let used = 128 - n.leading_zeros();
    // The last bit of the result stands at 2^last.
    let last = (exponent + used as i32 - BITS as i32).max(LEAST);
    let (mut mantissa, mut last) = match last - exponent {
        up if up <= 0 => (n << up.unsigned_abs(), last),
        down if down >= 128 => (0, last),
        down => {
            let down = down as u32;
            let (kept, rest, half) = (n >> down, n & ((1 << down) - 1), 1_u128 << (down - 1));
            let above = rest > half || rest == half && (sticky || kept & 1 == 1);
            (kept + u128::from(above), last)
        }
    };
    if mantissa >> BITS != 0 {
        mantissa >>= 1;
        last += 1;
    }
    match u64::try_from(mantissa) {
        Ok(mantissa) if last <= MOST => Size::Finite { mantissa, exponent: if mantissa == 0 { LEAST } else { last } },
        _ => Size::Infinite,
    }
}

/// Digits, a point, an exponent. The number, and whether what was written is zero itself.
fn decimal(text: &[u8]) -> Option<(Size, bool)> {
    let (digits, scale, rest) = mantissa(text, 10)?;
    let exponent = exponent(rest, b'e')?;
    let is_zero = digits.iter().all(|d| *d == 0);
    if is_zero {
        return Some((ZERO, true));
    }
    let leading = digits.iter().take_while(|d| **d == 0).count();
    let digits = &digits[leading..];
    let power = exponent.saturating_sub(scale);
    // Where the first digit stands decides alone, far out: nothing is computed that cannot be a number.
    let first = power.saturating_add(digits.len() as i64);
    if first > 4940 {
        return Some((Size::Infinite, false));
    }
    if first < -4960 {
        return Some((ZERO, false));
    }
    let mut n = Big::default();
    digits.iter().for_each(|d| n.times_plus(10, u32::from(*d)));
    let tens = power.unsigned_abs();
    if power >= 0 {
        (0..tens).for_each(|_| n.times_plus(10, 0));
        let (top, below, sticky) = n.top();
        return Some((round(top, below, sticky), false));
    }
    let mut divisor = Big::from(1);
    (0..tens).for_each(|_| divisor.times_plus(10, 0));
    // The quotient gets 66 to 67 bits, whichever of the two is the longer: 64, and what rounding needs.
    let up = divisor.bits() as i32 + 66 - n.bits() as i32;
    if up >= 0 {
        n.shift_up(up.unsigned_abs())
    } else {
        divisor.shift_up(up.unsigned_abs())
    }
    let (quotient, exact) = n.divided(&divisor);
    Some((round(quotient, -up, !exact), false))
}

fn hexadecimal(text: &[u8]) -> Option<(Size, bool)> {
    let (digits, scale, rest) = mantissa(text, 16)?;
    let exponent = exponent(rest, b'p')?;
    if digits.iter().all(|d| *d == 0) {
        return Some((ZERO, true));
    }
    let mut n = Big::default();
    digits.iter().for_each(|d| n.times_plus(16, u32::from(*d)));
    let (top, below, sticky) = n.top();
    let power = i64::from(below).saturating_add(exponent).saturating_sub(scale.saturating_mul(4));
    // Far out the number is nothing or too large, however long its mantissa is.
    let power = power.clamp(-100_000, 100_000) as i32;
    Some((round(top, power, sticky), false))
}

/// The digits, how many of them stand behind the point, and what follows.
fn mantissa(text: &[u8], base: u32) -> Option<(Vec<u8>, i64, &[u8])> {
    let (mut digits, mut scale, mut point, mut at) = (Vec::new(), 0, false, 0);
    while let Some(byte) = text.get(at) {
        match char::from(*byte).to_digit(base) {
            Some(digit) => {
                digits.push(digit as u8);
                scale += i64::from(point);
            }
            None if *byte == b'.' && !point => point = true,
            None => break,
        }
        at += 1;
    }
    (!digits.is_empty()).then(|| (digits, scale, &text[at..]))
}

/// What stands behind `e` or `p`; nothing is zero.
fn exponent(text: &[u8], mark: u8) -> Option<i64> {
    let Some((first, rest)) = text.split_first() else { return Some(0) };
    if *first != mark {
        return None;
    }
    let (negative, digits) = match rest {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n = digits.iter().fold(0_i64, |n, d| n.saturating_mul(10).saturating_add(i64::from(d - b'0')));
    let n = n.min(i64::MAX / 4);
    Some(if negative { -n } else { n })
}

/// A whole number of any size, lowest part first, no zeros on top. At most some 35,000 bits (5,119 digits and 4,960 tens).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Big(Vec<u32>);

impl From<u128> for Big {
    fn from(n: u128) -> Big {
        let mut big = Big((0..4).map(|i| (n >> (32 * i)) as u32).collect());
        big.trim();
        big
    }
}

impl Big {
    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    fn bits(&self) -> u32 {
        self.0.last().map_or(0, |top| 32 * self.0.len() as u32 - top.leading_zeros())
    }

    fn times_plus(&mut self, factor: u32, more: u32) {
        let mut carry = u64::from(more);
        for part in &mut self.0 {
            let product = u64::from(*part) * u64::from(factor) + carry;
            *part = product as u32;
            carry = product >> 32;
        }
        if carry > 0 {
            self.0.push(carry as u32);
        }
    }

    fn shift_up(&mut self, by: u32) {
        self.times_plus(1 << (by % 32), 0);
        if !self.0.is_empty() {
            self.0.splice(0..0, (0..by / 32).map(|_| 0));
        }
    }

    fn halve(&mut self) {
        let mut carry = 0;
        for part in self.0.iter_mut().rev() {
            let low = *part & 1;
            *part = *part >> 1 | carry << 31;
            carry = low;
        }
        self.trim();
    }

    fn at_least(&self, other: &Big) -> bool {
        let length = self.0.len().cmp(&other.0.len());
        length.then_with(|| self.0.iter().rev().cmp(other.0.iter().rev())) != Ordering::Less
    }

    fn subtract(&mut self, other: &Big) {
        let mut borrow = 0;
        for (i, part) in self.0.iter_mut().enumerate() {
            let less = i64::from(other.0.get(i).copied().unwrap_or(0)) + borrow;
            let difference = i64::from(*part) - less;
            borrow = i64::from(difference < 0);
            *part = difference as u32;
        }
        self.trim();
    }

    /// The highest 127 bits, the exponent of their last one, and whether anything stands below.
    fn top(&self) -> (u128, i32, bool) {
        let down = self.bits().saturating_sub(127);
        let (skip, shift) = ((down / 32) as usize, down % 32);
        let parts = self.0[skip..].iter().take(5).enumerate();
        let bit = |i: usize, part: u32| -> u128 {
            let up = 32 * i as i32 - shift as i32;
            if up >= 0 { u128::from(part) << up } else { u128::from(part) >> -up }
        };
        let top = parts.fold(0, |top, (i, part)| top | bit(i, *part));
        let below = self.0[..skip].iter().any(|part| *part != 0)
            || self.0.get(skip).is_some_and(|part| part & ((1 << shift) - 1) != 0);
        (top, down as i32, below)
    }

    /// The quotient, which is below 2^127, and whether nothing is left over.
    fn divided(mut self, divisor: &Big) -> (u128, bool) {
        let places = self.bits().saturating_sub(divisor.bits());
        let mut divisor = divisor.clone();
        divisor.shift_up(places);
        let mut quotient = 0;
        for _ in 0..=places {
            quotient <<= 1;
            if self.at_least(&divisor) {
                self.subtract(&divisor);
                quotient |= 1;
            }
            divisor.halve();
        }
        (quotient, self.0.is_empty())
    }
}

impl std::fmt::Display for Big {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const NINE: u64 = 1_000_000_000;
        let (mut rest, mut pieces) = (self.clone(), Vec::new());
        while !rest.0.is_empty() {
            let mut left = 0;
            for part in rest.0.iter_mut().rev() {
                let n = left << 32 | u64::from(*part);
                *part = (n / NINE) as u32;
                left = n % NINE;
            }
            rest.trim();
            pieces.push(left);
        }
        write!(f, "{}", pieces.pop().unwrap_or(0))?;
        pieces.iter().rev().try_for_each(|piece| write!(f, "{piece:09}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(a: &str, b: &str) -> String {
        let parsed = |text: &str| LongDouble::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
        parsed(a).add(parsed(b)).unwrap().text()
    }

    #[test]
    fn sums_are_those_of_redis() {
        for (a, b, expected) in [
            ("0", "3.14", "3.14"),
            ("0.1", "0.2", "0.3"),
            ("10.5", "0.1", "10.6"),
            ("3.0e3", "200", "3200"),
            ("1", "-1", "0"),
            ("-0", "-0", "0"),
            ("-1.5", "0", "-1.5"),
            ("9223372036854775807", "1", "9223372036854775808"),
            ("18446744073709551615", "1", "18446744073709551616"),
            ("0x10", "0x1.8p1", "19"),
            ("1e20", "0", "100000000000000000000"),
            ("1e-18", "0", "0"),
            ("123456789012345678901234567890123456789012345", "0.2", "123456789012345678896802277657040928322355200"),
            ("123456789012345678901234567890123456789012345.5", "0", "123456789012345678896802277657040928322355200"),
        ] {
            assert_eq!(sum(a, b), expected, "{a} + {b}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in
            ["", " 1", "1 ", "a", "nan", "1e", "1e+", "--1", ".", "0x", "1e5000", "1e-5000", "0x1p99999", "1_0", "+-1"]
        {
            assert!(LongDouble::parse(text.as_bytes()).is_none(), "{text:?}");
        }
        for text in ["+1", ".5", "5.", "1E3", "inf", "-Infinity", "0e99999", "1e4931", "1e-4950"] {
            assert!(LongDouble::parse(text.as_bytes()).is_some(), "{text:?}");
        }
    }

    #[test]
    fn infinities() {
        let of = |text: &str| LongDouble::parse(text.as_bytes()).unwrap();
        assert!(of("inf").add(of("-inf")).is_none());
        assert!(!of("inf").add(of("1")).unwrap().is_finite());
        let most = of("1.18973149535723176502e4932");
        assert!(!most.add(most).unwrap().is_finite());
    }
}
