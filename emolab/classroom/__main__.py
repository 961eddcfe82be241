from .editions import main

raise SystemExit(main())
