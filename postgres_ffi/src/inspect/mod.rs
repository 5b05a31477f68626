//! Pages and tuples as a person reads them.
