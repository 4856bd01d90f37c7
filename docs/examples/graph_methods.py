"""A GCN teaches MLPs that need no graph: labels only, GLNN, low and high frequencies, FF-G2M, HGMD.

python docs/examples/graph_methods.py
"""

from dataclasses import replace

from potstill.graph import Recipe, distill, load, teacher_logits, train_teacher

data = load("digits")  # pip install 'potstill-graph[digits]'
recipe = replace(Recipe(), epochs=30)
teacher = train_teacher(data, recipe)
z = teacher_logits(teacher.model, data)
print(f"{'GCN':12} {teacher.accuracy['test']:.3f}")
for method in ("mlp", "glnn", "lfd", "hfd", "ff-g2m", "krd-entropy", "hgmd-weight"):
    student = distill(data, z, recipe, method)
    print(f"{method:12} {student.accuracy['test']:.3f}")
