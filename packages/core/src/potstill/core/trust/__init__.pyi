from .proof import Case as Case
from .proof import Proof as Proof
from .proof import prove as prove
