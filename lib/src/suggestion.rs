//! The words that a misspelt one most likely stands for.

/// Below this similarity a word is not worth suggesting.
const MIN_SIMILARITY: f64 = 0.85;

/// The candidates with their similarity to `wrong`, from 0 to 1 (Jaro-Winkler), the most similar first.
pub fn by_similarity<'a>(
    wrong: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Vec<(f64, &'a str)> {
    let candidates = candidates.into_iter();
    let mut ranked: Vec<(f64, &str)> = candidates
        .map(|word| (strsim::jaro_winkler(wrong, word), word))
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    ranked
}

/// The candidate that `wrong` most likely stands for.
pub fn nearest<'a>(wrong: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (similarity, word) = *by_similarity(wrong, candidates).first()?;
    (similarity > MIN_SIMILARITY).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_is_the_most_similar_word_or_none() {
        let keys = ["threads", "timeout", "tags"];
        assert_eq!(nearest("timeuot", keys), Some("timeout"));
        assert_eq!(nearest("zzz", keys), None);
        assert_eq!(by_similarity("thread", keys)[0].1, "threads");
    }
}
