use super::*;
use crate::{Observer, observer::Silent};

/// What scikit-learn makes of 120 points (`stored_case.py` beside it).
#[derive(serde::Deserialize)]
struct Case {
    points: Vec<Vec<f64>>,
    k: usize,
    labels: Vec<usize>,
    inertia: f64,
    silhouette: f64,
    tsne_divergence: f64,
}

fn case() -> (Case, Points) {
    let case: Case = serde_json::from_str(include_str!("stored_case.json")).unwrap();
    let points = Points { dim: case.points[0].len(), values: case.points.concat() };
    (case, points)
}

/// Whether two ways to put points into clusters differ in the names of the clusters only.
fn same(a: &[usize], b: &[usize]) -> bool {
    (0..a.len()).all(|i| (0..i).all(|j| (a[i] == a[j]) == (b[i] == b[j])))
}

#[test]
fn clusters_and_silhouette_are_those_of_scikit_learn() {
    let (case, points) = case();
    let clusters = k_means(&points, case.k, Rng::new(0, 0));
    assert!(same(&clusters.labels, &case.labels));
    assert!((clusters.inertia - case.inertia).abs() < 1e-6, "{} {}", clusters.inertia, case.inertia);
    let found = silhouette(&points, &clusters.labels).unwrap();
    assert!((found - case.silhouette).abs() < 1e-6, "{found} {}", case.silhouette);
    let sizes = clusters.sizes();
    assert!(sizes.is_sorted_by(|a, b| a >= b) && sizes.iter().sum::<usize>() == points.len());
    // Its centres are means: points moved alike move them alike.
    let moved = Points { values: points.values.iter().map(|v| v + 3.0).collect(), ..points.clone() };
    let centres = k_means(&moved, case.k, Rng::new(0, 0)).centres;
    assert!(centres.values.iter().zip(&clusters.centres.values).all(|(a, b)| (a - b - 3.0).abs() < 1e-9));
}

#[test]
fn the_silhouette_by_hand() {
    // Distances inside 1 and 2, to the other cluster 10.5 for the first pair, and so on.
    let points = Points { dim: 1, values: vec![0.0, 1.0, 10.0, 12.0] };
    let by_hand = [(11.0 - 1.0) / 11.0, (10.0 - 1.0) / 10.0, (9.5 - 2.0) / 9.5, (11.5 - 2.0) / 11.5];
    let mean = by_hand.iter().sum::<f64>() / 4.0;
    assert!((silhouette(&points, &[0, 0, 1, 1]).unwrap() - mean).abs() < 1e-12);
    assert_eq!(silhouette(&points, &[0; 4]), None);
    assert_eq!(silhouette(&Points { dim: 1, values: vec![1.0; 3] }, &[0, 0, 1]), Some(0.0));
}

#[test]
fn as_many_clusters_as_points_and_equal_points_are_no_trouble() {
    let points = Points { dim: 2, values: vec![0.0, 0.0, 1.0, 1.0, 5.0, 0.0] };
    assert_eq!(k_means(&points, 3, Rng::new(1, 0)).inertia, 0.0);
    let equal = Points { dim: 2, values: vec![0.5; 20] };
    assert_eq!(k_means(&equal, 4, Rng::new(1, 0)).inertia, 0.0);
    assert!(tsne(&equal, &Silent).unwrap().places.iter().flatten().all(|v| v.is_finite()));
}

#[test]
fn a_map_keeps_neighbours_as_well_as_scikit_learns() {
    let (case, points) = case();
    let map = tsne(&points, &Silent).unwrap();
    assert!(map.divergence < case.tsne_divergence * 1.05 + 0.01, "{} {}", map.divergence, case.tsne_divergence);
    // Nearest neighbours on the map are of the same cluster.
    let away = |i: usize, j: usize| (map.places[i][0] - map.places[j][0]).hypot(map.places[i][1] - map.places[j][1]);
    let nearest = |i: usize| (0..points.len()).filter(|&j| j != i).min_by(|&a, &b| away(i, a).total_cmp(&away(i, b)));
    let kept = (0..points.len()).filter(|&i| case.labels[nearest(i).unwrap()] == case.labels[i]).count();
    assert!(kept * 10 >= points.len() * 9, "{kept} of {}", points.len());
    assert_eq!(map, tsne(&points, &Silent).unwrap());
}

#[test]
fn a_map_can_be_stopped() {
    struct Stop;
    impl Observer for Stop {
        fn stopped(&self) -> bool {
            true
        }
    }
    assert!(tsne(&case().1, &Stop).is_err());
}
