//! What idle connections and many keys cost.
