"""python -m medae"""

from medae.cli import main

main()
