"""Networks that methods train: modules that know no store and no method."""
