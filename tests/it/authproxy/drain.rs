//! The end: nobody loses a request.
