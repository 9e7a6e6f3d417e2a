//! Least squares with coefficients that are not negative, for a handful of them.

/// Terms of the cost of a step.
pub(super) const TERMS: usize = 4;

/// The coefficients that minimise the weighted sum of squares of `terms * coefficients - value`, none below zero.
///
/// Each subset of the terms is solved by itself, the others at zero, and the best without a negative coefficient is taken: with four
/// terms that is exact, and there is no iteration to end too soon. Terms are scaled to be alike first, since reads are a million
/// times as many as steps.
pub(super) fn non_negative(points: &[([f64; TERMS], f64, f64)]) -> [f64; TERMS] {
    let mut scale = [0.0; TERMS];
    for (terms, _, weight) in points {
        for (scale, term) in scale.iter_mut().zip(terms) {
            *scale += weight * term * term;
        }
    }
    let scale = scale.map(|sum: f64| if sum > 0.0 { sum.sqrt() } else { 1.0 });
    let (mut gram, mut moment) = ([[0.0; TERMS]; TERMS], [0.0; TERMS]);
    for (terms, value, weight) in points {
        for i in 0..TERMS {
            moment[i] += weight * terms[i] / scale[i] * value;
            for j in 0..TERMS {
                gram[i][j] += weight * terms[i] / scale[i] * terms[j] / scale[j];
            }
        }
    }
    let mut best = ([0.0; TERMS], 0.0);
    for subset in 1u32..1 << TERMS {
        let chosen: Vec<usize> = (0..TERMS).filter(|term| subset >> term & 1 == 1).collect();
        let Some(solved) = solve(&gram, &moment, &chosen) else { continue };
        if solved.iter().any(|coefficient| *coefficient < 0.0) {
            continue;
        }
        // How much less the sum of squares is than with nothing at all.
        let gain: f64 = chosen.iter().zip(&solved).map(|(&term, coefficient)| coefficient * moment[term]).sum();
        if gain > best.1 {
            let mut coefficients = [0.0; TERMS];
            chosen.iter().zip(solved).for_each(|(&term, c)| coefficients[term] = c / scale[term]);
            best = (coefficients, gain);
        }
    }
    best.0
}

/// Gaussian elimination with pivoting, of the chosen rows and columns; nothing if they do not determine an answer.
fn solve(gram: &[[f64; TERMS]; TERMS], moment: &[f64; TERMS], chosen: &[usize]) -> Option<Vec<f64>> {
    let n = chosen.len();
    let mut rows: Vec<Vec<f64>> =
        chosen.iter().map(|&i| chosen.iter().map(|&j| gram[i][j]).chain([moment[i]]).collect()).collect();
    for column in 0..n {
        let pivot = (column..n).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))?;
        rows.swap(column, pivot);
        // The diagonal is 1 by the scaling: this little of it left is rounding.
        if rows[column][column].abs() < 1e-9 {
            return None;
        }
        let (above, below) = rows.split_at_mut(column + 1);
        let pivot = &above[column][column..];
        for row in below {
            let factor = row[column] / pivot[0];
            row[column..].iter_mut().zip(pivot).for_each(|(cell, of_pivot)| *cell -= factor * of_pivot);
        }
    }
    let mut solved = vec![0.0; n];
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|at| rows[row][at] * solved[at]).sum();
        solved[row] = (rows[row][n] - known) / rows[row][row];
    }
    Some(solved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(truth: [f64; TERMS]) -> Vec<([f64; TERMS], f64, f64)> {
        (1..200u32)
            .map(|n| {
                let terms = [1.0, f64::from(n * 37 % 101), f64::from(n * 61 % 1009), f64::from(n * 17 % 251 * 1000)];
                let value = terms.iter().zip(truth).map(|(term, c)| term * c).sum();
                (terms, value, 1.0 / f64::from(n))
            })
            .collect()
    }

    #[test]
    fn exact_coefficients_are_found() {
        for truth in [[4e6, 2e4, 35.0, 1.0], [4e6, 2e4, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]] {
            let found = non_negative(&points(truth));
            for (found, truth) in found.iter().zip(truth) {
                assert!((found - truth).abs() <= 1e-6 * truth.max(1.0), "{found} for {truth}");
            }
        }
    }

    #[test]
    fn none_is_negative_and_terms_that_say_the_same_do_no_harm() {
        let found = non_negative(&points([4e6, 2e4, -500.0, 1.0]));
        assert!(found.iter().all(|c| *c >= 0.0) && found[2] == 0.0, "{found:?}");
        let alike: Vec<_> = (1..50).map(|n| ([1.0, f64::from(n), f64::from(n), 0.0], f64::from(n), 1.0)).collect();
        let found = non_negative(&alike);
        assert!((found[1] + found[2] - 1.0).abs() < 1e-6, "{found:?}");
        assert_eq!(non_negative(&[]), [0.0; TERMS]);
    }
}
