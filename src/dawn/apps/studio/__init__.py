"""``dawn studio``: the product as a web page (Gradio). ``run`` serves it; ``session`` is what it does, without a browser."""
