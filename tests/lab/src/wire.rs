//! What passes between the nodes. (filled in below)
