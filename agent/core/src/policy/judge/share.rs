//! What is equal in two policies, in memory once.

use super::Policies;

impl Policies {
    /// Takes what is equal from another one, so that it is in memory once.
    pub fn share(&mut self, with: &Self) {
        for object in &mut self.objects {
            let same = with.objects.binary_search_by(|other| other.id.cmp(&object.id));
            if let Some(same) = same.ok().and_then(|at| with.objects.get(at)).filter(|same| *same == object) {
                object.clone_from(same);
            }
        }
    }
}
