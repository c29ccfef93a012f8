"""Words for the tasks: common English nouns, adjectives and verbs, no word twice.

They are part of the measurement: another list would be another benchmark.
"""

__all__ = ["ADJECTIVES", "NOUNS", "VERBS"]

_NOUNS = """
acorn actor adapter address admiral advice agent airport album alley almond alphabet altar amber ambulance anchor
ankle antelope antenna anthem apple apricot apron aquarium arcade archer arena armchair arrow artist asphalt aspirin
astronaut athlete atlas attic auction aunt author autumn avenue avocado award axe baboon bachelor backpack bacon badge
badger bagel baker balcony ballad ballet balloon bamboo banana bandage banjo banker banner banquet barley barn barrel
barrier basement basil basin basket basketball battery bazaar beach beacon bead beam bean bear beard beaver bed
beehive beetle bell belt bench berry bicycle bill billiards birch biscuit bishop blanket blizzard blossom blouse boar
board boat bobsled bolt bonfire bonnet book boot border bottle boulder boundary bouquet bowl box bracelet brain branch
brass bread breakfast breeze brewery brick bride bridge broccoli bronze brooch broom brother bubble bucket buckle
buffalo bugle builder bulb bulletin bungalow bureau burrow bus bush butcher butler butter butterfly button cabbage
cabin cabinet cable cactus cafe cage cake calculator calendar calf camel camera camp canal canary candle candy cannon
canoe canvas canyon cape captain caravan caravel carbon cardinal career cargo carnation carnival carol carpenter
carpet carriage carrot cart carton cartoon cashew casino castle catalog cathedral cattle cave cedar ceiling celery
cellar cello cement century ceramic cereal chain chair chalk champion chandelier channel chapel chapter chariot chart
chauffeur checkers cheek cheese cheetah chef chemist cherry chess chestnut chicken chimney chin chisel chocolate choir
cider cinema cinnamon circle circus citadel citizen city clarinet classroom clay clerk cliff climate clinic cloak
clock closet cloth cloud clover clown coach coal coast cobra coconut cocoon coffee coin collar college colonel column
comb comedy comet commander compass composer computer concert condor conductor cone cookie copper coral cork corn
corner corridor costume cottage cotton couch cougar council counter country courier cousin cowboy coyote crab cracker
cradle crane crater crayon cream creature creek crew cricket crocodile crocus crossing crow crowd crown crumb crystal
cube cuckoo cucumber cup cupboard curtain cushion customer cycle cyclone cymbal dagger dairy daisy dam dancer
dandelion dashboard daughter dawn deacon deer defender delta dentist deputy desert desk dessert detective dew diamond
diary dictionary diesel diner dinner dinosaur diploma director disk district ditch diver dock doctor dolphin dome
domino donkey door dough dove dragon drawer dream dress drill driver drum duchess duck duke dumpling dungeon dusk dust
eagle ear earring earth easel echo eclipse editor eel egg elbow election elephant elevator elk elm embassy ember
emblem emerald emperor empire engine engineer envelope equator eraser escalator essay estate evening expert explorer
eyebrow fabric factory falcon family farm farmer father faucet feast feather fence fern ferry festival fiddle field
fig finch finger fire firefly fireplace fisherman fjord flag flame flamingo flannel flashlight flask fleet flint flock
floor florist flour flower flute foal fog folder folk font football forehead forest forge fork fort fossil fountain
fox freckle freezer freight friend fringe frog frost fruit fudge funnel furnace furniture galaxy gallery garage garden
gardener garlic garment garnet gasoline gate gazelle gear gecko gem general geyser ghost giant gift ginger giraffe
girdle glacier glass glider globe glove glue goat goblet gold golf gondola goose gorilla governor gown grain
grandfather grandmother granite grape grass gravel gravy greenhouse grocer grove guardian guest guide guitar gulf gull
gymnast hail hairpin hallway hamlet hammer hammock hamster handkerchief handle harbor harmonica harness harp hat
hatchet hawk hazelnut headline heart hearth hedge hedgehog helicopter helmet hen herald herb herd hermit hero heron
hickory highway hill hinge hobby hockey holiday honey hood hoof horizon horn hornet horse hospital hostel hotel hour
house hummingbird hurdle hurricane husband hut hydrant ibex icicle icon igloo iguana inch infant ink inn insect
inspector invoice iris iron island ivory ivy jackal jacket jaguar jam janitor jar jasmine javelin jaw jeans jelly
jewel jockey journal judge jug juice jungle juniper jury kangaroo kayak kennel kettle keyboard kidney kiln kilometer
king kingdom kiosk kitchen kite kitten kiwi knee knight knot koala label laboratory lace ladder ladle lady lagoon lake
lamb lamp language lantern lark lasso latch lava lavender lawn lawyer leaf leather lecture ledger leek legend lemon
lemonade leopard letter lettuce librarian library lid lighthouse lilac lily lime limestone lion lizard llama lobby
lobster locket locomotive locust lodge log lotus luggage lullaby lumber lunch lynx machine magazine magnet magnolia
magpie maid mailbox manager mandolin mango manor mansion mantle manual maple marathon marble margarine marigold
mariner market marmalade marsh mask mason mast mattress mayor meadow meal medal melody melon merchant mermaid meteor
microphone microscope midnight milk mill miner mineral minister minnow mint mirror missile mist mitten moat mole
monarch monastery monk monkey monsoon monument moon moose mop morning mosaic moss moth mother motor mountain mouse
moustache mud muffin mug mule muscle museum mushroom musician mustard nail napkin narrator navy necklace nectar needle
neighbor nephew nest net nettle newspaper niece nightingale nomad noodle noon nose notebook novel nurse nutmeg oak oar
oasis oat oatmeal ocean octopus office officer oil ointment olive omelet onion opal opera orange orbit orchard
orchestra orchid organ origami ostrich otter oven owl owner ox oxygen oyster paddle page pagoda pail painter pajamas
palace palm pancake panda panther pantry papaya paper parachute parade parcel parent park parka parrot parsley parsnip
passenger pasta pastry pasture path patient patio patriot pavement peach peacock peanut pear pearl pebble pedal
pedestrian pelican pen pencil penguin pepper perfume petal pheasant photograph pianist piano pickle picnic picture
pier pigeon pilgrim pill pillow pilot pin pine pineapple pipe pirate pistachio piston pizza planet plank plate
platform plaza plow plum plumber pocket poet pole polygon pond pony poplar poppy porch porcupine porridge port porter
portrait postcard poster potato potter powder prairie president priest prince princess printer prism prison professor
projector propeller prophet prune pudding puddle pulley pump pumpkin puppet puppy purse puzzle pyramid python quail
quarry quarter quartz queen quill quilt rabbit raccoon radar radiator radio radish raft railway rain rainbow raisin
rake ranch raspberry raven razor recipe refinery reindeer restaurant rhubarb ribbon rice rider rifle ring river road
robe robin robot rocket rod roof rooster root rope rose rosemary rowboat ruby rudder rug ruler runway saddle saffron
sailor salad salmon salt sandal sandwich sapphire sardine satellite saturn sauce saucer sausage saxophone scaffold
scale scarecrow scarf school scientist scissors scooter scorpion screen screw scroll sculptor sea seagull seal seaport
season secretary seed senator sentence servant sesame shadow shark shawl shed sheep sheet shelf shell shepherd sheriff
shield ship shirt shoe shop shore shoulder shovel shower shrimp shrine shutter sidewalk siege sign silk silver singer
sink siren sister skate skeleton skirt skunk sky slate sled sleeve slipper sloth snail snake snow soap soccer sock
soda sofa soil soldier son sonata song soup spade spaniel sparrow spear spectacles sphere spice spider spinach spire
sponge spoon spring sprout spruce square squash squid squirrel stable stadium stairway stamp star starfish station
statue steam steel steeple stem stereo stew stingray stocking stone stool storm stove stranger straw strawberry stream
street student studio subway sugar suitcase sulfur summer sun sundial sunflower sunset surgeon swallow swamp swan
sweater sword sycamore syrup table tablet tailor tambourine tangerine tank tapestry tavern taxi tea teacher teapot
telegraph telephone telescope temple tenant tennis tent terrace textbook theater thermometer thimble thistle thorn
thread throat throne thrush thumb thunder thyme ticket tide tiger tile timber toad toast toaster tobacco toe tomato
tongs tongue tooth topaz torch tornado tortoise toucan tourist towel tower town tractor trail train tram trapeze
traveler tray treasure tree trellis triangle tribe tricycle trombone trophy trousers trout trowel truck trumpet trunk
tuba tulip tuna tundra tunnel turban turkey turnip turquoise turtle tutor tuxedo twig typewriter umbrella uncle
unicorn uniform university urchin urn valley valve vanilla vase vault vegetable veil velvet veranda vessel vest
veteran victor vine vinegar vineyard viola violet violin vista volcano volleyball vulture wafer wagon waiter wall
wallet walnut walrus waltz wardrobe warehouse wasp watch water waterfall watermelon wax weasel weaver wedge wharf
wheat wheel whisker whistle widow wife wig willow window wine wing winter witness wizard wolf wombat woodpecker wool
workshop wreath wrench wrist yacht yard yarn yogurt zebra zeppelin zipper zoo
"""

_ADJECTIVES = """
abrupt absent abundant acidic active actual adorable aerial agile airy alert alien alive ample ancient angry annual
anxious aquatic ardent arid aromatic artful ashen astute athletic attentive audible austere average awake aware
awkward bald bare barren bashful basic beloved beneficial bent bitter bland blank bleak blind blissful blunt boastful
bold bony bored bouncy boundless brave brief bright brilliant brisk brittle broad broken bronzed bulky bumpy buoyant
burly busy calm candid capable careful careless caring casual cautious central certain charming cheap cheerful chilly
chubby circular civic civil classic clean clear clever cloudy clumsy coarse coastal cold colorful colossal comfortable
common compact complete complex concise confident constant content cool cordial corporate costly courteous cozy crafty
creamy creative crisp critical crooked crowded crude cruel crunchy curious curly current curved cynical daily damp
dapper daring dark dazzling dear decent deep definite deliberate delicate delicious dense dependable devoted different
digital diligent dim direct dirty discreet distant distinct dizzy domestic dormant double drab dramatic drastic dreary
drowsy dry dull durable dusty dutiful eager early earnest earthy eastern easy eccentric economic edible efficient
elaborate elastic elated elderly electric elegant eligible elite eloquent eminent empty enchanted endless energetic
enormous entire equal essential eternal even evident exact excellent exciting exotic expensive extra fabulous faint
fair faithful false familiar famous fancy fantastic faraway fast fatal favorable fearless feeble fertile festive few
fierce filthy final fine firm fitting flaky flashy flat flawless fleeting flexible flimsy floral fluffy fluid foamy
foggy fond foolish forceful foreign formal fortunate fragile fragrant frail frank free frequent fresh friendly frigid
frosty frozen frugal full fuzzy gaseous generous gentle genuine gifted gigantic glad glamorous gleaming global gloomy
glorious glossy golden good gorgeous graceful gracious gradual grand grateful gray greasy great greedy green gritty
grumpy hairy handmade handsome handy happy hard hardy harmless harmonious harsh hasty hazy healthy hearty heavy
helpful hidden hollow holy homely honest honorable hopeful horizontal hot huge humble humid hungry hushed icy ideal
idle immense immune impartial imperial important incredible infinite informal inland inner innocent intense internal
intimate inventive invisible jagged jealous jolly jovial joyful juicy jumpy keen kind known lanky large lasting late
lavish lawful lazy leafy lean legal legible lethal level light likely limber limited limp linear liquid literal little
lively local lofty lone lonely long loose loud lovely loyal lucky luminous lunar lush magical magnetic main majestic
major mammoth marine massive mature mean mechanical medical meek mellow melodic mental merry messy metallic mighty
mild minor minty misty mobile modern modest moist moral motionless muddy muffled murky musical mute mysterious naive
narrow nasty native natural naughty nautical neat necessary nervous neutral new nice nimble noble nocturnal noisy
normal northern nosy notable novice numb numerous obedient oblong obvious odd official old opaque open optimal oral
ordinary organic ornate outer outgoing oval overdue pale parallel partial passive past patchy peaceful peculiar
peppery perfect perky permanent petite physical piercing plain plastic playful pleasant plump plush poetic pointed
polar polished polite political poor popular portable posh positive potent practical precious precise pretty primary
prime pristine private profound prompt proper proud prudent public puny pure purple puzzled quaint quick quiet quirky
radiant random rapid rare raw ready real recent red refined regal regular reliable remote resolute responsible rich
rigid ripe roasted robust rocky romantic rosy rotten rough round rowdy royal rubbery rude rugged rural rustic sacred
sad safe salty same sandy sane scaly scarce scary scenic scholarly scientific scratchy secret secure serene serious
shabby shaggy shallow sharp shiny short shy silent silky silly similar simple sincere single sizzling skillful sleek
sleepy slender slick slight slim slippery slow sluggish small smart smoky smooth smug snowy snug social soft solar
solemn solid somber sore sour southern spacious sparse special specific speedy spicy spiral splendid spotless spotted
stale stark starry static steady steep sterile sticky stiff still stormy stout straight strange strict striking
striped strong stubborn sturdy stylish subtle sudden sunny superb supple supreme sure sweet swift symbolic talented
tall tame tangy tart tasty tedious teeming temporary tender tense tepid terrific thick thin thirsty thorough
thoughtful tidy tight timely timid tiny tired toasty torn total tough tragic tranquil tricky tropical true trusty
typical ultimate unified unique unusual upbeat upper uptight urban urgent useful usual vacant vague vain valiant valid
valuable vast verbal verdant vertical viable vibrant vicious vigilant vivid vocal volatile warm wary watery wavy weak
wealthy weary weekly weird western wet whimsical whole wicked wide wild willing windy wiry wise witty wobbly wonderful
wooden woolly worldly worn worthy wry yearly yellow young youthful zany zealous zesty
"""

_VERBS = """
absorb accept accuse achieve acquire adapt adjust admire admit adopt adore advance advise agree allow amaze amuse
analyze announce annoy answer appear applaud approve argue arise arrange arrest arrive ascend ask assemble assist
assume assure attach attack attempt attend avoid bake balance bathe beckon become beg begin behave believe belong bend
betray bind bless blink boil borrow bounce breathe bring browse build bump burn bury calculate cancel capture carry
carve cause celebrate chase chat cheat chew choose chop clap clarify clench climb cling collapse collect combine
compare compete complain compose compute conceal conclude confess confirm confuse connect consider consist construct
contain continue convert convince cook copy correct cough crack crash crawl create creep cry dance dare deceive decide
declare decorate defeat defend delay deliver demand deny depart depend describe deserve destroy detect develop devour
differ dig digest dilute discover discuss dislike dissolve divide donate doubt drag drain draw drift drink drop drown
earn eat educate elect embrace employ enable encourage endure enjoy enlarge enter entertain erase escape establish
evaluate examine exceed exchange exclude excuse exercise exist expand expect explain explode explore express extend
extract fade fail fasten fetch fight file fill find finish fix float flood flow fly fold follow forbid forecast forget
forgive form freeze frighten fry gain gallop gather gaze generate giggle give glance gleam glimpse gnaw govern grab
grasp greet grin grind groan grow growl guard guess halt hang happen harvest heal hear heat hesitate hide hold hope
hover howl hug hum hunt hurry identify ignore illustrate imagine imitate impress improve include increase indicate
infer inform inhale inherit inject injure inquire insert inspect inspire install instruct intend invade invent invest
invite irritate join joke jump justify kick kneel knit knock know lament land laugh launch lead leap learn leave lend
lift linger listen live loan lose lower maintain manage march marry measure meet melt mend mention migrate mix moan
modify mourn move multiply mumble murmur nag neglect negotiate nod notice nourish obey object observe obtain occupy
occur offer omit oppose order overcome overtake owe pack paint participate pass pause pay peel perform permit persuade
plan play plead pledge point polish ponder possess postpone pour practice praise pray preach predict prefer prepare
present preserve press pretend prevent proceed produce prohibit promise propose protect prove provide publish pull
punish push qualify question quit quote race raise reach react read realize rebuild recall receive recite recognize
recommend recover recycle reduce refer reflect refuse regret rejoice relax release rely remain remember remind remove
rent repair repeat replace reply report request require rescue resemble resist resolve respond rest retain retire
retreat return reveal reverse revise revive reward rinse rise roar roll rotate row rub ruin run rush sail satisfy save
scatter scold scratch scream scrub search select sell send separate serve sew shake share shave shine shiver shout
show shrink shrug sigh simmer sing sip sit ski skip slap sleep slice slide smash smell smile sneeze sniff snore soak
soar solve sort speak spell spend spill spin splash split spoil spread sprinkle squeak squeeze stand stare start stay
steal step stir stop strain strengthen stretch strike stroll struggle study stumble submit subtract succeed suffer
suggest supply support suppose surprise surrender surround survive suspect swear sweep swell swim swing sympathize
take talk tap taste teach tear tease tell tempt thank think thrive throw tickle touch tow trace trade translate travel
tremble trust try tumble twist type understand undo unfold unite unlock unpack unveil update urge vanish visit
volunteer vote wait wake walk wander want warn wash waste wave wear weave weep weigh welcome whine whisper win wink
wipe wish wonder work worry wrap wrestle write yawn yell yield
"""

NOUNS, ADJECTIVES, VERBS = (words.split() for words in (_NOUNS, _ADJECTIVES, _VERBS))
